"""Sample positions and weights of a tile of queries for one head: shared by forward and backward in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

# Pixel rows of the strips in which queries on a grid are ordered: 64 consecutive queries are a tile of 8 x 8 pixels.
STRIP = tl.constexpr(8)


@triton.jit
def read_level(shapes, starts, sizes, level: tl.constexpr, packed_start):
    """Return height, width and first row of a level; `packed_start` is the end of the levels before it."""
    if shapes is not None:
        height = tl.load(shapes + 2 * level).to(tl.int64)
        width = tl.load(shapes + 2 * level + 1).to(tl.int64)
    else:
        height = packed_start * 0 + (sizes[2 * level] >> 5)
        width = packed_start * 0 + (sizes[2 * level + 1] >> 5)
    start = packed_start
    if starts is not None:
        start = tl.load(starts + level).to(tl.int64)
    return height, width, start


@triton.jit
def check_levels(shapes, starts, sizes, S, L: tl.constexpr):
    """Return whether each level lies within the S rows of value, and whether all together are exactly these rows.

    A table on the device cannot be checked before the launch. If it does not fit, results are NaN.
    """
    rows = S.to(tl.int64)
    end = rows * 0
    fit = rows >= 0
    packed = rows >= 0
    for level in tl.static_range(L):
        height, width, start = read_level(shapes, starts, sizes, level, end)
        possible = (height >= 1) & (width >= 1) & (height <= rows) & (width <= rows)
        own_rows = tl.where(possible, height, 0) * tl.where(possible, width, 0)
        fit = fit & possible & (start >= 0) & (start + own_rows <= rows)
        packed = packed & (start == end)
        end += own_rows
    filled = packed & (end == rows)
    if starts is None:
        fit = fit & filled
    return fit, fit & filled


@triton.jit
def order_queries(number, shapes, starts, sizes, on_grid, L: tl.constexpr):
    """Return the queries at these positions in the order of processing.

    If queries are the pixels of the levels, they are ordered in strips of 8 pixel rows, column by column, so that
    neighbours in a tile, and in the cache, sample the same rows of value.
    """
    height = number * 0 + 1
    width = number * 0 + 1
    first = number * 0
    end = tl.program_id(0).to(tl.int64) * 0
    for level in tl.static_range(L):
        level_height, level_width, _ = read_level(shapes, starts, sizes, level, end)
        here = number >= end
        height = tl.where(here, level_height, height).to(tl.int32)
        width = tl.where(here, level_width, width).to(tl.int32)
        first = tl.where(here, end, first).to(tl.int32)
        end += level_height * level_width
    height = tl.where(on_grid, height, 1)
    width = tl.where(on_grid, width, 1)
    pixel = number - first
    strip = pixel // (STRIP * width)
    in_strip = pixel - strip * STRIP * width
    rows = tl.minimum(STRIP, height - strip * STRIP)
    rows = tl.where(on_grid, rows, 1)
    ordered = first + (strip * STRIP + in_strip % rows) * width + in_strip // rows
    return tl.where(on_grid, ordered, number)


@triton.jit
def tile_of_queries(shapes, starts, sizes, Q, S, M: tl.constexpr, L: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Return a program's image, head, queries [BLOCK_Q, 1], which of these exist, and whether the levels fit."""
    tiles = tl.cdiv(Q, BLOCK_Q)
    head = tl.program_id(0) // tiles
    number = (tl.program_id(0) % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    fit, on_grid = check_levels(shapes, starts, sizes, S, L)
    queries = order_queries(tl.minimum(number, Q - 1), shapes, starts, sizes, on_grid & (Q == S), L)
    return (head // M).to(tl.int64), head % M, queries.to(tl.int64)[:, None], (number < Q)[:, None], fit


# For each query and level, LANES lanes locate one sample each, then all of them read the rows of one sample after
# another. LANES lanes load a row, so that no data leaves the warp. `first` is the first sample of such a round.
@triton.jit
def held_samples(first, POINTS: tl.constexpr, LANES: tl.constexpr):
    """Return which lanes have a sample, [1, LANES], in a round of at most LANES."""
    if POINTS % LANES == 0:
        return tl.full([1, LANES], True, tl.int1)  # known at compile time
    else:
        return (first + tl.arange(0, LANES) < POINTS)[None, :]


@triton.jit
def samples_of_round(first, POINTS: tl.constexpr, LANES: tl.constexpr):
    """Return the number of lanes that have a sample."""
    if POINTS <= LANES:
        return POINTS
    else:
        return tl.minimum(POINTS - first, LANES)


@triton.jit
def load_pairs(pointers, held, PAIRED: tl.constexpr, LANES: tl.constexpr):
    """Load two consecutive numbers of each of LANES samples, starting at `pointers`: [Q, LANES] each.

    PAIRED ones are loaded as one number: they have 16 or 32 bits, and are aligned together.
    """
    lane = tl.arange(0, LANES)[None, :]
    number: tl.constexpr = pointers.dtype.element_ty
    if not PAIRED:
        first = tl.load(pointers + 2 * lane, mask=held, other=0)
        return first, tl.load(pointers + (2 * lane + 1), mask=held, other=0)
    elif number.primitive_bitwidth == 32:
        both = tl.load(pointers.to(tl.pointer_type(tl.int64), bitcast=True) + lane, mask=held, other=0)
        return both.to(tl.int32).to(number, bitcast=True), (both >> 32).to(tl.int32).to(number, bitcast=True)
    else:
        both = tl.load(pointers.to(tl.pointer_type(tl.int32), bitcast=True) + lane, mask=held, other=0)
        return both.to(tl.int16).to(number, bitcast=True), (both >> 16).to(tl.int16).to(number, bitcast=True)


@triton.jit
def store_pairs(pointers, first, second, held, LANES: tl.constexpr):
    """Store what `load_pairs` loads, in a tensor whose pairs are aligned."""
    lane = tl.arange(0, LANES)[None, :]
    number: tl.constexpr = pointers.dtype.element_ty
    if number.primitive_bitwidth == 64:
        tl.store(pointers + 2 * lane, first.to(number), mask=held)
        tl.store(pointers + (2 * lane + 1), second.to(number), mask=held)
    elif number.primitive_bitwidth == 32:
        low = first.to(number).to(tl.int32, bitcast=True).to(tl.int64) & 4294967295
        high = second.to(number).to(tl.int32, bitcast=True).to(tl.int64) << 32
        tl.store(pointers.to(tl.pointer_type(tl.int64), bitcast=True) + lane, low | high, mask=held)
    else:
        low = first.to(number).to(tl.int16, bitcast=True).to(tl.int32) & 65535
        high = second.to(number).to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(pointers.to(tl.pointer_type(tl.int32), bitcast=True) + lane, low | high, mask=held)


@triton.jit
def take(of_lanes, k):
    """Broadcast the number of lane k of each query to all of its lanes: [Q, LANES] to [Q, 1, 1].

    The third dimension makes Triton keep the layout in which rows are loaded, not that of samples in lanes.
    """
    at = tl.full([of_lanes.shape[0], 1], k, tl.int32)
    return tl.gather(of_lanes, at, 1)[:, :, None]


@triton.jit
def pack_flags(flags):
    """Pack four flags in one number, which takes one exchange between lanes."""
    return (
        flags[0].to(tl.int32)
        | (flags[1].to(tl.int32) << 1)
        | (flags[2].to(tl.int32) << 2)
        | (flags[3].to(tl.int32) << 3)
    )


@triton.jit
def unpack_flags(packed):
    return (packed & 1) != 0, (packed & 2) != 0, (packed & 4) != 0, (packed & 8) != 0


@triton.jit
def softmax_of(logits, K: tl.constexpr, PADDED_K: tl.constexpr, COMPUTE: tl.constexpr):
    """Return the maximum of each query's K logits, and the reciprocal of the softmax's denominator."""
    k = tl.arange(0, PADDED_K)
    row = tl.load(logits + k[None, :], mask=(k < K)[None, :], other=-float("inf")).to(COMPUTE)
    maximum = tl.max(row, 1)[:, None]
    return maximum, 1 / tl.sum(tl.exp(row - maximum), 1)[:, None]


@triton.jit
def attention_of(weight, softmax, COORDINATES: tl.constexpr):
    """Return the attention weights of samples: as passed, or the softmax of their logits."""
    if COORDINATES == 0:
        return weight
    else:
        maximum, inverse_sum = softmax
        return tl.exp(weight - maximum) * inverse_sum


@triton.jit
def load_reference(reference_points, queries, level: tl.constexpr, L: tl.constexpr, COORDINATES: tl.constexpr):
    """Return each query's reference point at a level: x and y, and width and height of a box."""
    at = reference_points + (queries * L + level) * COORDINATES
    if COORDINATES == 4:
        return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    else:
        return tl.load(at), tl.load(at + 1)


@triton.jit
def place_samples(raw_x, raw_y, reference, width, height, points: tl.constexpr, COORDINATES: tl.constexpr):
    """Return positions in pixels, and the pixels per unit of the raw numbers; rounded as in the kernels of csrc."""
    level_width = width.to(raw_x.dtype)
    level_height = height.to(raw_x.dtype)
    if COORDINATES == 0:
        return raw_x * level_width - 0.5, raw_y * level_height - 0.5, level_width, level_height
    elif COORDINATES == 2:
        x, y = reference
        return x * level_width - 0.5 + raw_x, y * level_height - 0.5 + raw_y, 1.0, 1.0
    else:
        x, y, box_width, box_height = reference
        half: tl.constexpr = 0.5 / max(points, 1)  # also compiled for levels without points
        scale_x = box_width * half * level_width
        scale_y = box_height * half * level_height
        return x * level_width - 0.5 + raw_x * scale_x, y * level_height - 0.5 + raw_y * scale_y, scale_x, scale_y


@triton.jit
def surround(x, y, level, value_mask, alive):
    """Find the pixels around a point; pixel centres have integer coordinates.

    A point at or below -1, at or beyond the size, or at NaN has no corner to read. It is moved to (-2, -2) before the
    conversion to integers, which is undefined for infinities and NaN.

    Returns:
        The row of value of the upper left corner, the fractions to the right and down, and which corners are within the
        level and not padding, in the order upper left, upper right, lower left, lower right.
    """
    height, width, start = level
    inside = (x >= -1) & (x < width.to(x.dtype)) & (y >= -1) & (y < height.to(x.dtype)) & alive
    x = tl.where(inside, x, -2)
    y = tl.where(inside, y, -2)
    left = tl.floor(x)
    upper = tl.floor(y)
    x0 = left.to(tl.int32)
    y0 = upper.to(tl.int32)
    row = y0 * width + x0 + start
    # The sides that `inside` does not check.
    left_valid = x0 >= 0
    right_valid = (x0 >= -1) & (x0 + 1 < width)
    above_valid = y0 >= 0
    below_valid = (y0 >= -1) & (y0 + 1 < height)
    reads = (
        _unmasked(value_mask, row, above_valid & left_valid),
        _unmasked(value_mask, row + 1, above_valid & right_valid),
        _unmasked(value_mask, row + width, below_valid & left_valid),
        _unmasked(value_mask, row + width + 1, below_valid & right_valid),
    )
    return row, x - left, y - upper, reads


@triton.jit
def _unmasked(value_mask, row, valid):
    """Return which of the valid corners are not padding."""
    if value_mask is None:
        return valid
    else:
        return valid & (tl.load(value_mask + row, mask=valid, other=1) == 0)


@triton.jit
def corner_weights(attention, right, below, reads):
    """Return the bilinear weights times attention; 0 for corners that are not read, even if attention is not finite."""
    read0, read1, read2, read3 = reads
    above_weight = attention * (1 - below)
    below_weight = attention * below
    return (
        tl.where(read0, above_weight * (1 - right), 0),
        tl.where(read1, above_weight * right, 0),
        tl.where(read2, below_weight * (1 - right), 0),
        tl.where(read3, below_weight * right, 0),
    )


# A head's D channels are in two tensors of D / 2: even and odd channels if two 16-bit numbers are loaded as one
# (PACKED), else the first and the second half. A lane then has four channels of each tensor for all dtypes: of value,
# when it loads 16 bytes, and of value's float32 gradient, when it adds 16 bytes. Otherwise each term of a sum would
# have to move to another lane.
@triton.jit
def load_row(pointers, reads, PACKED: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PADDED_HALF: tl.constexpr):
    """Load D channels as they are in memory, [Q, 1, PADDED_HALF]; zeros for rows that are not valid.

    `pointers` [Q, 1, 1] point to each row's first channel.
    """
    i = tl.arange(0, PADDED_HALF)[None, None, :]
    if PACKED:
        words = pointers.to(tl.pointer_type(tl.int32), bitcast=True)
        return tl.load(words + i, mask=_within(reads, i, HALF, PADDED_HALF), other=0), 0
    else:
        first = tl.load(pointers + i, mask=_within(reads, i, HALF, PADDED_HALF), other=0)
        return first, tl.load(pointers + HALF + i, mask=_within(reads, i, D - HALF, PADDED_HALF), other=0)


@triton.jit
def _within(rows, i, count: tl.constexpr, PADDED: tl.constexpr):
    if count == PADDED:
        return rows
    else:
        return rows & (i < count)


@triton.jit
def widen(loaded, number: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr):
    """Return both halves of the result of `load_row`, in the compute dtype."""
    first, second = loaded
    if not PACKED:
        return first.to(COMPUTE), second.to(COMPUTE)
    elif number == tl.bfloat16:  # the upper half of a float32
        return (first << 16).to(tl.float32, bitcast=True), (first & -65536).to(tl.float32, bitcast=True)
    else:
        even = first.to(tl.int16).to(number, bitcast=True)
        odd = (first >> 16).to(tl.int16).to(number, bitcast=True)
        return even.to(COMPUTE), odd.to(COMPUTE)


@triton.jit
def load_corners(
    value,
    row,
    width,
    stride,
    reads,
    PACKED: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Load both halves of the four rows around one sample of each query; zeros for rows that are not valid."""
    number: tl.constexpr = value.dtype.element_ty
    upper = value + row.to(tl.int64) * stride
    lower = upper + width.to(tl.int64) * stride
    # All loads come first, so that their latencies overlap.
    loaded0 = load_row(upper, reads[0], PACKED, D, HALF, PADDED_HALF)
    loaded1 = load_row(upper + stride, reads[1], PACKED, D, HALF, PADDED_HALF)
    loaded2 = load_row(lower, reads[2], PACKED, D, HALF, PADDED_HALF)
    loaded3 = load_row(lower + stride, reads[3], PACKED, D, HALF, PADDED_HALF)
    return (
        widen(loaded0, number, PACKED, COMPUTE),
        widen(loaded1, number, PACKED, COMPUTE),
        widen(loaded2, number, PACKED, COMPUTE),
        widen(loaded3, number, PACKED, COMPUTE),
    )


@triton.jit
def store_row(
    pointers, first, second, rows, PACKED: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PADDED_HALF: tl.constexpr
):
    """Invert `load_row` and `widen`."""
    i = tl.arange(0, PADDED_HALF)[None, None, :]
    number: tl.constexpr = pointers.dtype.element_ty
    if PACKED:
        even = first.to(number).to(tl.int16, bitcast=True).to(tl.int32) & 65535
        odd = second.to(number).to(tl.int16, bitcast=True).to(tl.int32) << 16
        words = pointers.to(tl.pointer_type(tl.int32), bitcast=True)
        tl.store(words + i, even | odd, mask=_within(rows, i, HALF, PADDED_HALF))
    else:
        tl.store(pointers + i, first.to(number), mask=_within(rows, i, HALF, PADDED_HALF))
        tl.store(pointers + HALF + i, second.to(number), mask=_within(rows, i, D - HALF, PADDED_HALF))


@triton.jit
def add_to_row(pointers, weight, halves, scale, rows, D: tl.constexpr, HALF: tl.constexpr, PADDED_HALF: tl.constexpr):
    """Add both halves times a weight, one half after the other, to the sums of all programs."""
    i = tl.arange(0, PADDED_HALF)[None, None, :]
    first = weight * halves[0]
    second = weight * halves[1]
    if scale is not None:
        factor = tl.load(scale)
        first = tl.floor(first * factor + 0.5).to(tl.int64)
        second = tl.floor(second * factor + 0.5).to(tl.int64)
    tl.atomic_add(pointers + i, first, mask=_within(rows, i, HALF, PADDED_HALF), sem="relaxed")
    tl.atomic_add(pointers + HALF + i, second, mask=_within(rows, i, D - HALF, PADDED_HALF), sem="relaxed")
