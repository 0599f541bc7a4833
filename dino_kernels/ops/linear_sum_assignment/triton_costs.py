"""Reads a matrix of costs, and finds its allowed rows and their least costs, in Triton.

Costs become float64, with +inf for forbidden pairs; none is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.linear_sum_assignment.triton_scratch import CHEAPEST, CHEAPEST_COST, NONE, ROW, ROW_DUAL


@triton.jit
def read_costs(pointers, mask, sign):
    cost = tl.load(pointers, mask=mask, other=0.0).to(tl.float64) * sign
    return tl.where(mask & (tl.abs(cost) < float("inf")), cost, float("inf"))


@triton.jit
def row_minima(
    matrix,
    row_stride,
    column_stride,
    rows,
    columns,
    sign,
    floats,
    integers,
    bound,
    STORE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Return the number of allowed rows, and 2 if a cost is NaN or -inf, else 1 if one is +inf, else 0.

    Stores each allowed row's number, its least cost and the lowest column with that cost.
    """
    # One dimension, so that neighbouring threads read neighbouring columns, although the strides are unknown at compile
    # time.
    LANES: tl.constexpr = TILE_ROWS * TILE_COLUMNS
    lane = tl.arange(0, LANES)
    allowed_rows = 0
    worst = 0
    for first_row in range(0, rows, TILE_ROWS):
        row = first_row + lane // TILE_COLUMNS
        row_pointers = matrix + row.to(tl.int64) * row_stride
        # Each lane keeps the least cost of its columns; they are reduced after the last column.
        least = tl.full([LANES], float("inf"), tl.float64)
        least_at = tl.full([LANES], NONE, tl.int32)
        wrong = tl.full([LANES], 0, tl.int32)
        for first_column in range(0, columns, TILE_COLUMNS):
            column = first_column + lane % TILE_COLUMNS
            inside = (row < rows) & (column < columns)
            cost = tl.load(row_pointers + column.to(tl.int64) * column_stride, mask=inside, other=0.0)
            cost = cost.to(tl.float64) * sign
            finite = tl.abs(cost) < float("inf")
            wrong = tl.maximum(wrong, tl.where(finite, 0, tl.where(cost == float("inf"), 1, 2)))
            less = inside & finite & (cost < least)
            least = tl.where(less, cost, least)
            least_at = tl.where(less, column, least_at)
        worst = tl.maximum(worst, tl.max(wrong, 0))
        least = tl.reshape(least, [TILE_ROWS, TILE_COLUMNS])
        least_at = tl.reshape(least_at, [TILE_ROWS, TILE_COLUMNS])
        cost_of_row = tl.min(least, 1)
        column_of_row = tl.min(tl.where(least == cost_of_row[:, None], least_at, NONE), 1)
        row = first_row + tl.arange(0, TILE_ROWS)
        allowed = cost_of_row < float("inf")
        number = allowed_rows + tl.cumsum(allowed.to(tl.int32), 0) - 1
        if STORE:
            tl.store(integers + bound * ROW + number, row, mask=allowed)
            tl.store(integers + bound * CHEAPEST + number, column_of_row, mask=allowed)
            tl.store(floats + bound * CHEAPEST_COST + number, cost_of_row, mask=allowed)
            tl.store(floats + bound * ROW_DUAL + number, cost_of_row, mask=allowed)
        allowed_rows += tl.sum(allowed.to(tl.int32), 0)
    return allowed_rows, worst


@triton.jit
def cheapest_unmatched(row_pointer, column_stride, columns, sign, taken, TILE: tl.constexpr):
    """Return the least cost of a row's unmatched columns and the lowest column with it; +inf and NONE without one."""
    least = tl.full([TILE], float("inf"), tl.float64)
    least_at = tl.full([TILE], NONE, tl.int32)
    for first in range(0, columns, TILE):
        column = first + tl.arange(0, TILE)
        inside = column < columns
        unmatched = tl.load(taken + column, mask=inside, other=0) == NONE
        cost = read_costs(row_pointer + column.to(tl.int64) * column_stride, inside & unmatched, sign)
        less = cost < least
        least = tl.where(less, cost, least)
        least_at = tl.where(less, column, least_at)
    cost = tl.min(least, 0)
    return cost, tl.min(tl.where(least == cost, least_at, NONE), 0)
