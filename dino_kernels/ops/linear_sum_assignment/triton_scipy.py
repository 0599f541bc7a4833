"""SciPy's order of augmentation, `solve_as_scipy` of reference.py, in Triton. Barriers as in triton_lowest.py."""

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.linear_sum_assignment.triton_costs import read_costs
from dino_kernels.ops.linear_sum_assignment.triton_scratch import COLUMN_OF, FLOATS, INTEGERS, NONE, ROW, ROW_DUAL


@triton.jit
def solve_as_scipy(
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
):
    """Fill COLUMN_OF and ROW_DUAL of the allowed rows, and column_duals."""
    duals = floats + bound * FLOATS  # duals of the columns
    row_of = integers + bound * INTEGERS
    for first in range(0, columns, CHUNK):
        column = first + tl.arange(0, CHUNK)
        tl.store(duals + column, tl.full([CHUNK], 0.0, tl.float64), mask=column < columns)
        tl.store(row_of + column, tl.full([CHUNK], -1, tl.int32), mask=column < columns)
    for first in range(0, allowed_rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        tl.store(floats + bound * ROW_DUAL + row, tl.full([CHUNK], 0.0, tl.float64), mask=row < allowed_rows)
        tl.store(integers + bound * COLUMN_OF + row, tl.full([CHUNK], -1, tl.int32), mask=row < allowed_rows)
    for start in range(allowed_rows):
        _augment(matrix, row_stride, column_stride, columns, sign, start, allowed_rows, floats, integers, bound, CHUNK)
    tl.debug_barrier()
    if column_duals is not None:
        for first in range(0, columns, CHUNK):
            column = first + tl.arange(0, CHUNK)
            dual = tl.load(duals + column, mask=column < columns, other=0.0)
            tl.store(column_duals + column, sign * dual + 0.0, mask=column < columns)


@triton.jit
def _augment(
    matrix,
    row_stride,
    column_stride,
    columns,
    sign,
    start,
    allowed_rows,
    floats,
    integers,
    bound,
    CHUNK: tl.constexpr,
):
    """Match one more row, if a path exists."""
    duals = floats + bound * FLOATS
    distances = duals + columns
    row_of = integers + bound * INTEGERS
    previous = row_of + columns
    remaining = previous + columns  # columns that the path may still visit, then the visited ones
    for first in range(0, columns, CHUNK):
        column = first + tl.arange(0, CHUNK)
        tl.store(distances + column, tl.full([CHUNK], float("inf"), tl.float64), mask=column < columns)
        tl.store(remaining + column, columns - 1 - column, mask=column < columns)
    tl.debug_barrier()
    left = columns
    row = start
    base = tl.full([], 0.0, tl.float64)
    sink = -1
    searching = True
    while searching & (left > 0):
        row_pointer = matrix + tl.load(integers + bound * ROW + row).to(tl.int64) * row_stride
        dual = tl.load(floats + bound * ROW_DUAL + row)
        nearest = tl.full([], float("inf"), tl.float64)
        last_unmatched = -1
        first_of_all = NONE
        for first in range(0, left, CHUNK):
            place = first + tl.arange(0, CHUNK)
            inside = place < left
            column = tl.load(remaining + place, mask=inside, other=0)
            column_dual = tl.load(duals + column, mask=inside, other=0.0)
            distance = tl.load(distances + column, mask=inside, other=float("inf"))
            unmatched = tl.load(row_of + column, mask=inside, other=0) < 0
            cost = read_costs(row_pointer + column.to(tl.int64) * column_stride, inside, sign)
            reach = ((base + cost) - dual) - column_dual
            closer = inside & (reach < distance)
            distance = tl.where(closer, reach, distance)
            tl.debug_barrier()
            tl.store(distances + column, distance, mask=closer)
            tl.store(previous + column, tl.full([CHUNK], 0, tl.int32) + row, mask=closer)
            least = tl.min(distance, 0)
            if least < nearest:
                nearest = least
                last_unmatched = -1
                first_of_all = NONE
            equal = inside & (distance == nearest)
            last_unmatched = tl.maximum(last_unmatched, tl.max(tl.where(equal & unmatched, place, -1), 0))
            first_of_all = tl.minimum(first_of_all, tl.min(tl.where(equal, place, NONE), 0))
        searching = nearest < float("inf")
        if searching:
            place_of_nearest = tl.where(last_unmatched >= 0, last_unmatched, first_of_all)
            column_of_nearest = tl.load(remaining + place_of_nearest)
            column_of_last = tl.load(remaining + left - 1)
            owner = tl.load(row_of + column_of_nearest)
            tl.debug_barrier()
            left -= 1
            tl.store(remaining + place_of_nearest, column_of_last, mask=place_of_nearest != left)
            tl.store(remaining + left, column_of_nearest)
            base = nearest
            if owner < 0:
                sink = column_of_nearest
                searching = False
            else:
                row = owner
        tl.debug_barrier()

    if sink >= 0:
        _change_duals(base, start, left, columns, floats, integers, bound, CHUNK)
        _turn_path(start, sink, allowed_rows, columns, integers, bound)


@triton.jit
def _change_duals(base, start, left, columns, floats, integers, bound, CHUNK: tl.constexpr):
    """Update the duals of the visited columns, of the rows matched with them, and of the start."""
    duals = floats + bound * FLOATS
    distances = duals + columns
    row_of = integers + bound * INTEGERS
    remaining = row_of + 2 * columns
    start_dual = tl.load(floats + bound * ROW_DUAL + start)
    for first in range(left, columns, CHUNK):
        place = first + tl.arange(0, CHUNK)
        inside = place < columns
        column = tl.load(remaining + place, mask=inside, other=0)
        owner = tl.load(row_of + column, mask=inside, other=-1)
        further = base - tl.load(distances + column, mask=inside, other=0.0)
        column_dual = tl.load(duals + column, mask=inside, other=0.0)
        row_dual = tl.load(floats + bound * ROW_DUAL + owner, mask=owner >= 0, other=0.0)
        tl.debug_barrier()
        tl.store(duals + column, column_dual - further, mask=inside)
        tl.store(floats + bound * ROW_DUAL + owner, row_dual + further, mask=owner >= 0)
    tl.store(floats + bound * ROW_DUAL + start, start_dual + base)


@triton.jit
def _turn_path(start, sink, allowed_rows, columns, integers, bound):
    """Match each row on the path with the column after it."""
    row_of = integers + bound * INTEGERS
    previous = row_of + columns
    column = sink
    steps = 0
    turning = True
    while turning & (steps < allowed_rows):
        row = tl.load(previous + column)
        column_left = tl.load(integers + bound * COLUMN_OF + row)
        tl.debug_barrier()
        tl.store(row_of + column, row)
        tl.store(integers + bound * COLUMN_OF + row, column)
        column = column_left
        turning = row != start
        steps += 1
