"""Shortest augmenting paths over matched columns, `solve_lowest` of reference.py, in Triton.

A barrier separates any two accesses to the same element of scratch memory if one of them writes
(tests/triton/test_matching.py searches for pairs without one).
"""

# Kernels are in Triton's language: arguments have its types, and functions called within them return values.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.linear_sum_assignment.triton_costs import cheapest_unmatched, read_costs
from dino_kernels.ops.linear_sum_assignment.triton_scratch import (
    CHEAPEST,
    CHEAPEST_COST,
    COLUMN_OF,
    FREE,
    INTEGERS,
    NONE,
    ROW,
    ROW_DUAL,
    SLOT_COLUMN,
    SLOT_DISTANCE,
    SLOT_DONE,
    SLOT_DUAL,
    SLOT_OF,
    SLOT_PREVIOUS,
    SLOT_ROW,
)


@triton.jit
def solve_lowest(
    matrix,
    row_stride,
    column_stride,
    columns,
    sign,
    allowed_rows,
    floats,
    integers,
    bound,
    column_duals,  # [columns], or None
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Fill COLUMN_OF and ROW_DUAL of the allowed rows, stored by `row_minima`, and column_duals."""
    matched, free_rows = _match_cheapest(columns, allowed_rows, integers, floats, bound, CHUNK)
    for number in range(free_rows):
        start = tl.load(integers + bound * FREE + number)
        matched = _augment(
            matrix, row_stride, column_stride, columns, sign, start, matched, floats, integers, bound, CHUNK, TILE
        )
    for first in range(0, allowed_rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        inside = row < allowed_rows
        slot = tl.load(integers + bound * SLOT_OF + row, mask=inside, other=-1)
        has_slot = slot >= 0
        column = tl.load(integers + bound * SLOT_COLUMN + slot, mask=has_slot, other=-1)
        tl.store(integers + bound * COLUMN_OF + row, column, mask=inside)
        if column_duals is not None:
            dual = tl.load(floats + bound * SLOT_DUAL + slot, mask=has_slot, other=0.0)
            tl.store(column_duals + column, sign * dual + 0.0, mask=has_slot)
    tl.debug_barrier()


@triton.jit
def _match_cheapest(columns, allowed_rows, integers, floats, bound, CHUNK: tl.constexpr):
    """Match each row with its cheapest column if no earlier row has it; return how many rows are matched and not."""
    taken = integers + bound * INTEGERS  # for each column the lowest row whose cheapest it is; NONE while unmatched
    for first in range(0, columns, CHUNK):
        column = first + tl.arange(0, CHUNK)
        tl.store(taken + column, tl.full([CHUNK], NONE, tl.int32), mask=column < columns)
    tl.debug_barrier()
    for first in range(0, allowed_rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        inside = row < allowed_rows
        cheapest = tl.load(integers + bound * CHEAPEST + row, mask=inside, other=0)
        tl.atomic_min(taken + cheapest, row, mask=inside, sem="relaxed", scope="cta")
    tl.debug_barrier()
    matched = 0
    free_rows = 0
    for first in range(0, allowed_rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        inside = row < allowed_rows
        cheapest = tl.load(integers + bound * CHEAPEST + row, mask=inside, other=0)
        gets_it = inside & (tl.load(taken + cheapest, mask=inside, other=NONE) == row)
        is_free = inside & ~gets_it
        slot = matched + tl.cumsum(gets_it.to(tl.int32), 0) - 1
        tl.store(integers + bound * SLOT_OF + row, tl.where(gets_it, slot, -1), mask=inside)
        tl.store(integers + bound * SLOT_ROW + slot, row, mask=gets_it)
        tl.store(integers + bound * SLOT_COLUMN + slot, cheapest, mask=gets_it)
        tl.store(floats + bound * SLOT_DUAL + slot, tl.full([CHUNK], 0.0, tl.float64), mask=gets_it)
        tl.store(integers + bound * FREE + free_rows + tl.cumsum(is_free.to(tl.int32), 0) - 1, row, mask=is_free)
        matched += tl.sum(gets_it.to(tl.int32), 0)
        free_rows += tl.sum(is_free.to(tl.int32), 0)
    tl.debug_barrier()
    return matched, free_rows


@triton.jit
def _augment(
    matrix,
    row_stride,
    column_stride,
    columns,
    sign,
    start,
    matched,
    floats,
    integers,
    bound,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Match one more row, if a path exists. Of equals: an unmatched column, the lowest; else the earliest slot."""
    taken = integers + bound * INTEGERS
    for first in range(0, matched, CHUNK):
        slot = first + tl.arange(0, CHUNK)
        tl.store(floats + bound * SLOT_DISTANCE + slot, tl.full([CHUNK], float("inf"), tl.float64), mask=slot < matched)
        tl.store(integers + bound * SLOT_DONE + slot, tl.full([CHUNK], 0, tl.int32), mask=slot < matched)
    tl.debug_barrier()
    best = tl.full([], float("inf"), tl.float64)
    sink = NONE
    before_sink = -1
    row = start
    base = tl.full([], 0.0, tl.float64)
    steps = 0
    searching = True
    while searching & (steps <= matched):
        row_pointer = matrix + tl.load(integers + bound * ROW + row).to(tl.int64) * row_stride
        here = base - tl.load(floats + bound * ROW_DUAL + row)

        # Among unmatched columns only the row's cheapest can end a path, and it stays the cheapest until it is matched.
        cost = tl.load(floats + bound * CHEAPEST_COST + row)
        candidate = tl.load(integers + bound * CHEAPEST + row)
        if tl.load(taken + candidate, mask=candidate < columns, other=NONE) != NONE:
            cost, candidate = cheapest_unmatched(row_pointer, column_stride, columns, sign, taken, TILE)
            tl.debug_barrier()
            tl.store(floats + bound * CHEAPEST_COST + row, cost)
            tl.store(integers + bound * CHEAPEST + row, candidate)
        reach_sink = cost + here
        if (reach_sink < best) | ((reach_sink == best) & (best < float("inf")) & (candidate < sink)):
            best = reach_sink
            sink = candidate
            before_sink = row

        nearest = tl.full([], float("inf"), tl.float64)
        nearest_slot = NONE
        for first in range(0, matched, CHUNK):
            slot = first + tl.arange(0, CHUNK)
            waiting = tl.load(integers + bound * SLOT_DONE + slot, mask=slot < matched, other=1) == 0
            column = tl.load(integers + bound * SLOT_COLUMN + slot, mask=waiting, other=0)
            dual = tl.load(floats + bound * SLOT_DUAL + slot, mask=waiting, other=0.0)
            distance = tl.load(floats + bound * SLOT_DISTANCE + slot, mask=waiting, other=float("inf"))
            reach = (read_costs(row_pointer + column.to(tl.int64) * column_stride, waiting, sign) - dual) + here
            closer = waiting & (reach < distance)
            distance = tl.where(closer, reach, distance)
            tl.debug_barrier()
            tl.store(floats + bound * SLOT_DISTANCE + slot, distance, mask=closer)
            tl.store(integers + bound * SLOT_PREVIOUS + slot, tl.full([CHUNK], 0, tl.int32) + row, mask=closer)
            least = tl.min(distance, 0)
            if least < nearest:
                nearest = least
                nearest_slot = tl.min(tl.where(distance == least, slot, NONE), 0)
        searching = best > nearest
        if searching:
            tl.store(integers + bound * SLOT_DONE + nearest_slot, 1)
            row = tl.load(integers + bound * SLOT_ROW + nearest_slot)
            base = nearest
        tl.debug_barrier()
        steps += 1

    if best < float("inf"):
        _change_duals(best, start, matched, floats, integers, bound, CHUNK)
        tl.store(integers + bound * SLOT_COLUMN + matched, sink)
        tl.store(floats + bound * SLOT_DUAL + matched, tl.full([], 0.0, tl.float64))
        tl.store(taken + sink, start)
        _turn_path(start, before_sink, matched, integers, bound)
        matched += 1
        tl.debug_barrier()
    return matched


@triton.jit
def _change_duals(best, start, matched, floats, integers, bound, CHUNK: tl.constexpr):
    """Update the duals of the start and of all finished slots, so that the path to the sink has reduced cost 0."""
    start_dual = tl.load(floats + bound * ROW_DUAL + start)
    for first in range(0, matched, CHUNK):
        slot = first + tl.arange(0, CHUNK)
        done = tl.load(integers + bound * SLOT_DONE + slot, mask=slot < matched, other=0) != 0
        distance = tl.load(floats + bound * SLOT_DISTANCE + slot, mask=done, other=0.0)
        row = tl.load(integers + bound * SLOT_ROW + slot, mask=done, other=0)
        slot_dual = tl.load(floats + bound * SLOT_DUAL + slot, mask=done, other=0.0)
        row_dual = tl.load(floats + bound * ROW_DUAL + row, mask=done, other=0.0)
        tl.debug_barrier()
        tl.store(floats + bound * SLOT_DUAL + slot, slot_dual + (distance - best), mask=done)
        tl.store(floats + bound * ROW_DUAL + row, row_dual + (best - distance), mask=done)
    tl.store(floats + bound * ROW_DUAL + start, start_dual + best)


@triton.jit
def _turn_path(start, before_sink, matched, integers, bound):
    """Move each row on the path to the slot after it; the last row, before the sink, gets the new slot."""
    slot = matched
    row = before_sink
    steps = 0
    turning = True
    while turning & (steps <= matched):
        left = tl.load(integers + bound * SLOT_OF + row)
        tl.debug_barrier()
        tl.store(integers + bound * SLOT_ROW + slot, row)
        tl.store(integers + bound * SLOT_OF + row, slot)
        turning = row != start
        if turning:
            slot = left
            row = tl.load(integers + bound * SLOT_PREVIOUS + left)
        steps += 1
