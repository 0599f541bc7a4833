"""Backward of multi-scale deformable attention in Triton, classic and fused: all gradients in one kernel.

A program has one head of one image and a tile of queries. Of each sample it computes four dot products, of the rows
that the sample reads with the head's output gradient, and from these the gradients of position and weight. The rows of
value's gradient gain weight * grad_output, by vectors of atomic adds. Sums are float32 (float64 for float64), or int64
in fixed point, which are the same in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.ms_deform_attn.triton_forward import SIZES
from dino_kernels.ops.ms_deform_attn.triton_samples import (
    add_to_row,
    attention_of,
    corner_weights,
    load_corners,
    load_pair,
    load_reference,
    load_row,
    place_samples,
    read_level,
    softmax_of,
    surround,
    tile_of_queries,
    widen,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def ms_deform_attn_backward(
    grad_output,  # [B, Q, M, D]
    value,  # [B, S, M, D]
    positions,  # [B, Q, M, K, 2] sampling locations, or offsets
    weights,  # [B, Q, M, K] attention weights, or logits
    reference_points,  # [B, Q, L, COORDINATES], or None
    value_mask,  # [B, S] uint8, or None
    shapes,  # [L, 2] (H, W), or None
    starts,  # [L], or None
    sizes,  # (H0, W0, H1, W1, ...), each as 32 n + 17, or None
    # What is None is not wanted.
    sums,  # [B, S, M, D] of grad_value: zeros in the compute dtype, or in int64
    scale,  # [1] of sums in fixed point, or None
    grad_positions,  # [B, Q, M, K, 2]
    grad_attention,  # [B, Q, M, K] compute dtype: what the attention weights gain
    grad_logits,  # [B, Q, M, K], which may be the same memory; None for the classic op
    grad_reference_points,  # [B, Q, M, L, COORDINATES] compute dtype, not yet summed over heads
    Q,
    S,
    grad_output_batch_stride,
    grad_output_row_stride,
    value_batch_stride,
    value_row_stride,
    positions_batch_stride,
    positions_row_stride,
    weights_batch_stride,
    weights_row_stride,
    M: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    POINTS: tl.constexpr,  # [L]
    COORDINATES: tl.constexpr,  # of a reference point; 0: the classic op
    COMPUTE: tl.constexpr,  # dtype
    PAIRED: tl.constexpr,  # see load_pair
    PACKED: tl.constexpr,  # see load_row
    PADDED_K: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    L: tl.constexpr = len(POINTS)
    HALF: tl.constexpr = (D + 1) // 2
    b, m, q, exists, fit = tile_of_queries(shapes, starts, sizes, Q, S, M, L, BLOCK_Q)

    grad_output += b * grad_output_batch_stride + q * grad_output_row_stride + m * D
    loaded = load_row(grad_output, exists, PACKED, D, HALF, PADDED_HALF)
    grad = widen(loaded, grad_output.dtype.element_ty, PACKED, COMPUTE)
    value += b * value_batch_stride + m * D
    positions += b * positions_batch_stride + q * positions_row_stride + m * (2 * K)
    weights += b * weights_batch_stride + q * weights_row_stride + m * K
    if value_mask is not None:
        value_mask += b * S
    if sums is not None:
        sums += (b * S * M + m) * D
    item = (b * Q + q) * M + m
    if grad_positions is not None:
        grad_positions += item * (2 * K)
    if grad_attention is not None:
        grad_attention += item * K
    softmax = 0.0, 1.0
    if COORDINATES > 0:
        softmax = softmax_of(weights, K, PADDED_K, COMPUTE)

    mean = tl.zeros([BLOCK_Q, 1], COMPUTE)
    end = b * 0
    for number in tl.static_range(L):
        height, width, start = read_level(shapes, starts, sizes, number, end)
        end += height * width
        level = height.to(tl.int32), width.to(tl.int32), start.to(tl.int32)
        reference = 0.0, 0.0
        if COORDINATES > 0:
            reference = load_reference(reference_points, b * Q + q, number, L, COORDINATES)
        mean, grad_reference = _level(
            mean,
            grad,
            value,
            value_row_stride,
            value_mask,
            positions,
            weights,
            reference,
            softmax,
            level,
            exists,
            exists & fit,
            sums,
            scale,
            grad_positions,
            grad_attention,
            POINTS[number],
            M,
            D,
            COORDINATES,
            PAIRED,
            PACKED,
        )
        if grad_reference_points is not None:
            to = grad_reference_points + (item * L + number) * COORDINATES
            for c in tl.static_range(COORDINATES):
                tl.store(to + c, grad_reference[c], mask=exists)
        positions += 2 * POINTS[number]
        weights += POINTS[number]
        if grad_positions is not None:
            grad_positions += 2 * POINTS[number]
        if grad_attention is not None:
            grad_attention += POINTS[number]

    if grad_logits is not None:
        # The softmax's Jacobian needs the sum over all samples, whose gradients have waited in memory.
        k = tl.arange(0, PADDED_K)[None, :]
        held = exists & (k < K)
        tl.debug_barrier()
        logits = tl.load(weights - K + k, mask=held, other=0).to(COMPUTE)
        gradient = attention_of(logits, softmax, COORDINATES) * (tl.load(grad_attention - K + k, mask=held) - mean)
        tl.debug_barrier()
        tl.store(grad_logits + item * K + k, gradient, mask=held)


@triton.jit
def _level(
    mean,
    grad,
    value,
    stride,
    value_mask,
    positions,
    weights,
    reference,
    softmax,
    level,
    exists,
    alive,
    sums,
    scale,
    grad_positions,
    grad_attention,
    POINTS: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    COORDINATES: tl.constexpr,
    PAIRED: tl.constexpr,
    PACKED: tl.constexpr,
):
    """The samples of one level. Returns mean with their share, and the gradient of the queries' reference points."""
    compute: tl.constexpr = mean.dtype
    half: tl.constexpr = (D + 1) // 2
    padded_half: tl.constexpr = grad[0].shape[1]
    height = level[0]
    width = level[1]
    grad_x = mean * 0
    grad_y = mean * 0
    grad_width = mean * 0
    grad_height = mean * 0
    for k in range(POINTS):
        raw_x, raw_y = load_pair(positions + 2 * k, PAIRED)
        raw_x = raw_x.to(compute)
        raw_y = raw_y.to(compute)
        attention = attention_of(tl.load(weights + k).to(compute), softmax, COORDINATES)
        x, y, scale_x, scale_y = place_samples(raw_x, raw_y, reference, width, height, POINTS, COORDINATES)
        row, right, below, reads = surround(x, y, level, value_mask, alive)
        corners = load_corners(value, row, width, stride, reads, PACKED, D, half, padded_half, compute)
        dot0 = _dot(corners[0], grad)
        dot1 = _dot(corners[1], grad)
        dot2 = _dot(corners[2], grad)
        dot3 = _dot(corners[3], grad)
        if sums is not None:
            shares = corner_weights(attention, right, below, reads)
            upper_sums = sums + row.to(tl.int64) * (M * D)
            lower_sums = upper_sums + width.to(tl.int64) * (M * D)
            add_to_row(upper_sums, shares[0], grad, scale, reads[0], D, half, padded_half)
            add_to_row(upper_sums + M * D, shares[1], grad, scale, reads[1], D, half, padded_half)
            add_to_row(lower_sums, shares[2], grad, scale, reads[2], D, half, padded_half)
            add_to_row(lower_sums + M * D, shares[3], grad, scale, reads[3], D, half, padded_half)

        upper_slope = dot1 - dot0
        lower_slope = dot3 - dot2
        upper = dot0 + right * upper_slope
        lower = dot2 + right * lower_slope
        sampled = upper + below * (lower - upper)
        pixel_x = attention * (upper_slope + below * (lower_slope - upper_slope))
        pixel_y = attention * (lower - upper)
        if grad_positions is not None:
            number: tl.constexpr = grad_positions.dtype.element_ty
            tl.store(grad_positions + 2 * k, _chain(pixel_x, scale_x).to(number), mask=exists)
            tl.store(grad_positions + 2 * k + 1, _chain(pixel_y, scale_y).to(number), mask=exists)
        if grad_attention is not None:
            tl.store(grad_attention + k, sampled.to(grad_attention.dtype.element_ty), mask=exists)
            mean += attention * sampled
        grad_x += pixel_x
        grad_y += pixel_y
        if COORDINATES == 4:
            grad_width += _chain(pixel_x, raw_x)
            grad_height += _chain(pixel_y, raw_y)
    level_width = width.to(compute)
    level_height = height.to(compute)
    of_box: tl.constexpr = 0.5 / max(POINTS, 1)
    return mean, (
        grad_x * level_width,
        grad_y * level_height,
        grad_width * (of_box * level_width),
        grad_height * (of_box * level_height),
    )


@triton.jit
def _dot(row, grad):
    return tl.sum(row[0] * grad[0] + row[1] * grad[1], 1)[:, None]


@triton.jit
def _chain(gradient, factor):
    """Chain rule. A sample outside has no gradient, not even 0 * NaN where its position is not finite."""
    return tl.where(gradient == 0, 0, gradient * factor)
