"""Forward of multi-scale deformable attention in Triton, classic and fused.

A program computes one head of one image for a tile of queries. Each of the lanes that load a row locates a sample; rows
are then added sample by sample. Lanes exchange data by shuffles only, and the warps of a program share only the cache.
Traffic: value's rows are gathered, mostly from the first-level cache; positions and weights are read once, output is
written once. Positions, weights and sums are float32 (float64 for float64).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.ms_deform_attn.triton_samples import (
    attention_of,
    corner_weights,
    held_samples,
    load_corners,
    load_pairs,
    load_reference,
    pack_flags,
    place_samples,
    read_level,
    samples_of_round,
    softmax_of,
    store_row,
    surround,
    take,
    tile_of_queries,
    unpack_flags,
)

# Arguments that vary with the size of the images: neither their values nor their alignment make a variant.
SIZES = ("Q", "S")
# Number of samples whose rows are loaded before the first is used.
UNROLL = tl.constexpr(2)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def ms_deform_attn_forward(
    value,  # [B, S, M, D]
    positions,  # [B, Q, M, K, 2] sampling locations, or offsets
    weights,  # [B, Q, M, K] attention weights, or logits
    reference_points,  # [B, Q, L, COORDINATES], or None
    value_mask,  # [B, S] uint8, or None
    shapes,  # [L, 2] (H, W), or None
    starts,  # [L], or None
    sizes,  # (H0, W0, H1, W1, ...), each as 32 n + 17, or None
    output,  # [B, Q, M, D]
    Q,
    S,
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
    value += b * value_batch_stride + m * D
    positions += b * positions_batch_stride + q * positions_row_stride + m * (2 * K)
    weights += b * weights_batch_stride + q * weights_row_stride + m * K
    if value_mask is not None:
        value_mask += b * S
    softmax = 0.0, 1.0
    if COORDINATES > 0:
        softmax = softmax_of(weights, K, PADDED_K, COMPUTE)

    first_sums = tl.zeros([TILE, 1, PADDED_HALF], COMPUTE)
    second_sums = tl.zeros([TILE, 1, PADDED_HALF], COMPUTE)
    end = b * 0
    for number in tl.static_range(L):
        height, width, start = read_level(shapes, starts, sizes, number, end)
        end += height * width
        level = height.to(tl.int32), width.to(tl.int32), start.to(tl.int32)
        reference = 0.0, 0.0
        if COORDINATES > 0:
            reference = load_reference(reference_points, b * Q + q, number, L, COORDINATES)
        first_sums, second_sums = _add_level(
            first_sums,
            second_sums,
            value,
            value_row_stride,
            value_mask,
            positions,
            weights,
            reference,
            softmax,
            level,
            exists & fit,
            POINTS[number],
            D,
            COORDINATES,
            PAIRED,
            PACKED,
            LANES,
        )
        positions += 2 * POINTS[number]
        weights += POINTS[number]
    first_sums = tl.where(fit, first_sums, float("nan"))
    second_sums = tl.where(fit, second_sums, float("nan"))
    to = (output + ((b * Q + q) * M + m) * D)[:, :, None]
    store_row(to, first_sums, second_sums, exists[:, :, None], PACKED, D, HALF, PADDED_HALF)


@triton.jit
def _add_level(
    first_sums,
    second_sums,
    value,
    stride,
    value_mask,
    positions,
    weights,
    reference,
    softmax,
    level,
    alive,
    POINTS: tl.constexpr,
    D: tl.constexpr,
    COORDINATES: tl.constexpr,
    PAIRED: tl.constexpr,
    PACKED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Add the samples of one level to the sums."""
    compute: tl.constexpr = first_sums.dtype
    half: tl.constexpr = (D + 1) // 2
    padded_half: tl.constexpr = first_sums.shape[2]
    height = level[0]
    width = level[1]
    for first in range(0, POINTS, LANES):
        held = held_samples(first, POINTS, LANES)
        raw_x, raw_y = load_pairs(positions + 2 * first, held, PAIRED, LANES)
        logits = tl.load(weights + first + tl.arange(0, LANES)[None, :], mask=held, other=0)
        attention = attention_of(logits.to(compute), softmax, COORDINATES)
        x, y, _, _ = place_samples(raw_x.to(compute), raw_y.to(compute), reference, width, height, POINTS, COORDINATES)
        row, right, below, reads = surround(x, y, level, value_mask, alive & held)
        shares = corner_weights(attention, right, below, reads)
        flags = pack_flags(reads)
        # A loop, because 16 samples in a row take ten times as long to compile as 4, for the same instructions.
        for k in tl.range(0, samples_of_round(first, POINTS, LANES), loop_unroll_factor=UNROLL):
            of_k = unpack_flags(take(flags, k))
            corners = load_corners(value, take(row, k), width, stride, of_k, PACKED, D, half, padded_half, compute)
            for c in tl.static_range(4):
                share = take(shares[c], k)
                first_sums += share * corners[c][0]
                second_sums += share * corners[c][1]
    return first_sums, second_sums
