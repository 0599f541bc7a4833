"""Backward of multi-scale deformable attention in Triton, classic and fused: all gradients in one kernel.

A program computes one head of one image for a tile of queries. For each sample it computes four dot products, of the
rows that the sample reads with the head's output gradient, and from these the gradients of position and weight. It adds
weight * grad_output to the rows of value's gradient, by vectors of atomic adds. Sums are float32 (float64 for float64),
or int64 in fixed point, which are the same in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.ms_deform_attn.triton_forward import SIZES
from dino_kernels.ops.ms_deform_attn.triton_samples import (
    add_to_row,
    attention_of,
    corner_weights,
    held_samples,
    load_corners,
    load_pairs,
    load_reference,
    load_row,
    pack_flags,
    place_samples,
    read_level,
    samples_of_round,
    softmax_of,
    store_pairs,
    surround,
    take,
    tile_of_queries,
    unpack_flags,
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
    # Gradients that are not requested are None.
    sums,  # [B, S, M, D] of grad_value: zeros in the compute dtype, or in int64
    scale,  # [1], scale of sums in fixed point, or None
    grad_positions,  # [B, Q, M, K, 2]
    grad_attention,  # [B, Q, M, K] compute dtype: gradient of the attention weights
    grad_logits,  # [B, Q, M, K], may be the same memory; None for `ms_deform_attn`
    grad_reference_points,  # [B, Q, M, L, COORDINATES] compute dtype, to be summed over heads
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
    COORDINATES: tl.constexpr,  # coordinates of a reference point; 0: `ms_deform_attn`
    COMPUTE: tl.constexpr,  # dtype
    PAIRED: tl.constexpr,  # see load_pairs
    PACKED: tl.constexpr,  # see load_row
    PADDED_K: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    LANES: tl.constexpr,  # see held_samples
    BLOCK_Q: tl.constexpr,  # queries of a program if LANES is 4
):
    L: tl.constexpr = len(POINTS)
    TILE: tl.constexpr = max(BLOCK_Q * 4 // LANES, 1)
    HALF: tl.constexpr = (D + 1) // 2
    b, m, q, exists, fit = tile_of_queries(shapes, starts, sizes, Q, S, M, L, TILE)

    grad_output += b * grad_output_batch_stride + q * grad_output_row_stride + m * D
    loaded = load_row(grad_output[:, :, None], exists[:, :, None], PACKED, D, HALF, PADDED_HALF)
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

    mean = tl.zeros([TILE, LANES], COMPUTE)
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
            LANES,
        )
        if grad_reference_points is not None:
            _store_reference(
                grad_reference_points + (item * L + number) * COORDINATES, grad_reference, exists, COORDINATES, LANES
            )
        positions += 2 * POINTS[number]
        weights += POINTS[number]
        if grad_positions is not None:
            grad_positions += 2 * POINTS[number]
        if grad_attention is not None:
            grad_attention += POINTS[number]

    if grad_logits is not None:
        # The softmax's Jacobian needs the sum over all samples, whose gradients were stored in memory.
        k = tl.arange(0, PADDED_K)[None, :]
        held = exists & (k < K)
        tl.debug_barrier()
        logits = tl.load(weights - K + k, mask=held, other=0).to(COMPUTE)
        waiting = tl.load(grad_attention - K + k, mask=held)
        gradient = attention_of(logits, softmax, COORDINATES) * (waiting - tl.sum(mean, 1)[:, None])
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
    LANES: tl.constexpr,
):
    """Process the samples of one level; return the updated mean and the gradient of the reference points."""
    compute: tl.constexpr = mean.dtype
    half: tl.constexpr = (D + 1) // 2
    padded_half: tl.constexpr = grad[0].shape[2]
    height = level[0]
    width = level[1]
    lane = tl.arange(0, LANES)[None, :]
    zeros = tl.zeros(mean.shape, compute)
    grad_x = zeros
    grad_y = zeros
    grad_width = zeros
    grad_height = zeros
    for first in range(0, POINTS, LANES):
        held = held_samples(first, POINTS, LANES)
        raw_x, raw_y = load_pairs(positions + 2 * first, held, PAIRED, LANES)
        raw_x = raw_x.to(compute)
        raw_y = raw_y.to(compute)
        attention = attention_of(tl.load(weights + first + lane, mask=held, other=0).to(compute), softmax, COORDINATES)
        x, y, scale_x, scale_y = place_samples(raw_x, raw_y, reference, width, height, POINTS, COORDINATES)
        row, right, below, reads = surround(x, y, level, value_mask, alive & held)
        shares = corner_weights(attention, right, below, reads)
        flags = pack_flags(reads)
        dot0 = zeros
        dot1 = zeros
        dot2 = zeros
        dot3 = zeros
        for k in range(samples_of_round(first, POINTS, LANES)):
            row_k = take(row, k)
            reads_k = unpack_flags(take(flags, k))
            corners = load_corners(value, row_k, width, stride, reads_k, PACKED, D, half, padded_half, compute)
            dot0 = tl.where(lane == k, _dot(corners[0], grad, LANES), dot0)
            dot1 = tl.where(lane == k, _dot(corners[1], grad, LANES), dot1)
            dot2 = tl.where(lane == k, _dot(corners[2], grad, LANES), dot2)
            dot3 = tl.where(lane == k, _dot(corners[3], grad, LANES), dot3)
            if sums is not None:
                upper_sums = sums + row_k.to(tl.int64) * (M * D)
                lower_sums = upper_sums + width.to(tl.int64) * (M * D)
                add_to_row(upper_sums, take(shares[0], k), grad, scale, reads_k[0], D, half, padded_half)
                add_to_row(upper_sums + M * D, take(shares[1], k), grad, scale, reads_k[1], D, half, padded_half)
                add_to_row(lower_sums, take(shares[2], k), grad, scale, reads_k[2], D, half, padded_half)
                add_to_row(lower_sums + M * D, take(shares[3], k), grad, scale, reads_k[3], D, half, padded_half)

        upper_slope = dot1 - dot0
        lower_slope = dot3 - dot2
        upper = dot0 + right * upper_slope
        lower = dot2 + right * lower_slope
        sampled = upper + below * (lower - upper)
        pixel_x = attention * (upper_slope + below * (lower_slope - upper_slope))
        pixel_y = attention * (lower - upper)
        if grad_positions is not None:
            store_pairs(
                grad_positions + 2 * first, _chain(pixel_x, scale_x), _chain(pixel_y, scale_y), exists & held, LANES
            )
        if grad_attention is not None:
            tl.store(grad_attention + first + lane, sampled.to(grad_attention.dtype.element_ty), mask=exists & held)
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
        tl.sum(grad_x, 1)[:, None] * level_width,
        tl.sum(grad_y, 1)[:, None] * level_height,
        tl.sum(grad_width, 1)[:, None] * (of_box * level_width),
        tl.sum(grad_height, 1)[:, None] * (of_box * level_height),
    )


@triton.jit
def _dot(row, grad, LANES: tl.constexpr):
    """Return row sums [Q, 1]; each lane sums first, so that Triton keeps the layout of samples, not that of rows."""
    products = row[0] * grad[0] + row[1] * grad[1]
    of_lanes = tl.sum(tl.reshape(products, [products.shape[0], LANES, products.shape[2] // LANES]), 2)
    return tl.sum(of_lanes, 1)[:, None]


@triton.jit
def _store_reference(pointers, gradients, exists, COORDINATES: tl.constexpr, LANES: tl.constexpr):
    """Store one coordinate per lane."""
    c = tl.arange(0, max(COORDINATES, LANES))[None, :]
    gradient = tl.where(c == 0, gradients[0], gradients[1])
    if COORDINATES == 4:
        gradient = tl.where(c < 2, gradient, tl.where(c == 2, gradients[2], gradients[3]))
    tl.store(pointers + c, gradient, mask=exists & (c < COORDINATES))


@triton.jit
def _chain(gradient, factor):
    """Apply the chain rule. A sample outside has gradient 0, even if its position is not finite (no 0 * NaN)."""
    return tl.where(gradient == 0, 0, gradient * factor)
