"""Linear sum assignment, one program per problem, in Triton.

A program reads its matrix once for the minima of its rows, and again only along the rows of augmenting paths. Its
state is in scratch memory, small enough for the L1 cache. No size is a compile-time constant, so one kernel serves all
calls. Arithmetic is float64 in the order of reference.py, so indices, objective and duals have the same bits. Every
loop is bounded.
"""

# Kernels are in Triton's language: arguments have its types, and functions called within them return values.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from dino_kernels.ops.linear_sum_assignment.triton_costs import read_costs, row_minima
from dino_kernels.ops.linear_sum_assignment.triton_lowest import solve_lowest
from dino_kernels.ops.linear_sum_assignment.triton_scipy import solve_as_scipy
from dino_kernels.ops.linear_sum_assignment.triton_scratch import COLUMN_OF, ROW, ROW_DUAL, VALUE

INVALID_COST = tl.constexpr(4)
INCOMPLETE = tl.constexpr(8)
# The numeric arguments except constexprs: neither their values nor their alignment make a variant.
RUNTIME = range(23)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=RUNTIME)
def linear_sum_assignment(
    cost,  # [G, R, C]
    offsets,  # [B + 1] int64, or None
    sizes,  # [G, 2] int64, or None
    notes,  # [G, B, notes_per_problem] int32, or None
    columns_of_rows,  # [G, R] int64, -1 everywhere
    status,  # [G, B] int32
    objective,  # [G, B] float64, or None
    row_duals,  # [G, R] float64, 0 everywhere, or None
    column_duals,  # [G, B, C] float64, 0 everywhere, or None
    floats,  # [G, B, floats_per_problem]: scratch
    integers,  # [G, B, integers_per_problem]: scratch
    problems: tl.int64,  # B; 1 without offsets
    height: tl.int64,  # R
    width: tl.int64,  # C
    max_rows: tl.int64,  # the most rows of a problem
    bound: tl.int64,  # bound of the smaller side
    group_stride: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    notes_per_problem: tl.int64,
    floats_per_problem: tl.int64,
    integers_per_problem: tl.int64,
    sign,  # 1.0, or -1.0 to maximize
    AS_SCIPY: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // problems
    sign = (program * 0).to(tl.float64) + sign
    first_row = program * 0
    rows = height
    columns = width
    if offsets is not None:
        first_row = tl.minimum(tl.maximum(tl.load(offsets + program % problems), 0), height)
        rows = tl.minimum(tl.load(offsets + program % problems + 1), height) - first_row
    if sizes is not None:
        rows = tl.minimum(tl.load(sizes + group * 2), height)
        columns = tl.minimum(tl.maximum(tl.load(sizes + group * 2 + 1), 0), width)
    # Offsets on the device cannot be checked before the launch; nothing is written out of bounds.
    rows = tl.minimum(tl.maximum(rows, 0), max_rows).to(tl.int32)
    columns = columns.to(tl.int32)
    matrix = cost + group * group_stride + first_row * row_stride
    floats += program * floats_per_problem
    integers += program * integers_per_problem

    # The solver's rows are the smaller side, counted without rows and columns that infinities forbid.
    transposed = columns < rows
    n, m = tl.where(transposed, columns, rows), tl.where(transposed, rows, columns)
    n_stride = tl.where(transposed, column_stride, row_stride)
    m_stride = tl.where(transposed, row_stride, column_stride)
    allowed_rows, worst = row_minima(
        matrix, n_stride, m_stride, n, m, sign, floats, integers, bound, True, TILE_ROWS, TILE_COLUMNS
    )
    if worst > 0:
        allowed_columns, _ = row_minima(
            matrix, m_stride, n_stride, m, n, sign, floats, integers, bound, False, TILE_ROWS, TILE_COLUMNS
        )
        if allowed_rows > allowed_columns:
            transposed = ~transposed
            n, m = m, n
            n_stride, m_stride = m_stride, n_stride
            tl.debug_barrier()
            allowed_rows, _ = row_minima(
                matrix, n_stride, m_stride, n, m, sign, floats, integers, bound, True, TILE_ROWS, TILE_COLUMNS
            )
    tl.debug_barrier()

    of_rows = group * height + first_row
    smaller_duals = row_duals
    larger_duals = column_duals
    if row_duals is not None:
        smaller_duals = tl.where(transposed, column_duals + program * width, row_duals + of_rows)
        larger_duals = tl.where(transposed, row_duals + of_rows, column_duals + program * width)
    if AS_SCIPY:
        solve_as_scipy(matrix, n_stride, m_stride, m, sign, allowed_rows, floats, integers, bound, larger_duals, CHUNK)
    else:
        solve_lowest(
            matrix,
            n_stride,
            m_stride,
            m,
            sign,
            allowed_rows,
            floats,
            integers,
            bound,
            larger_duals,
            CHUNK,
            TILE_COLUMNS,
        )

    pairs = 0
    for first in range(0, allowed_rows, CHUNK):
        number = first + tl.arange(0, CHUNK)
        inside = number < allowed_rows
        row = tl.load(integers + bound * ROW + number, mask=inside, other=0)
        column = tl.load(integers + bound * COLUMN_OF + number, mask=inside, other=-1)
        has_column = column >= 0
        out_row, out_column = tl.where(transposed, column, row), tl.where(transposed, row, column)
        tl.store(columns_of_rows + of_rows + out_row, out_column.to(tl.int64), mask=has_column)
        pairs += tl.sum(has_column.to(tl.int32), 0)
        if row_duals is not None:
            dual = tl.load(floats + bound * ROW_DUAL + number, mask=inside, other=0.0)
            tl.store(smaller_duals + row, sign * dual + 0.0, mask=inside)
    if objective is not None:
        total = _objective(
            matrix, n_stride, m_stride, sign, allowed_rows, pairs, transposed, floats, integers, bound, CHUNK
        )
        tl.store(objective + program, total)

    found = tl.where(worst > 1, INVALID_COST, 0) | tl.where(pairs < tl.minimum(n, m), INCOMPLETE, 0)
    if notes is not None:
        found = found | _joined_notes(notes + program * notes_per_problem, notes_per_problem, CHUNK)
    tl.store(status + program, found)


@triton.jit
def _objective(
    matrix,
    row_stride,
    column_stride,
    sign,
    allowed_rows,
    pairs,
    transposed,
    floats,
    integers,
    bound,
    CHUNK: tl.constexpr,
):
    """Return the sum of the matched costs, in the order of the rows of the matrix."""
    for first in range(0, allowed_rows, CHUNK):
        number = first + tl.arange(0, CHUNK)
        inside = number < allowed_rows
        row = tl.load(integers + bound * ROW + number, mask=inside, other=0)
        column = tl.load(integers + bound * COLUMN_OF + number, mask=inside, other=-1)
        has_column = column >= 0
        pointers = matrix + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
        place = tl.full([CHUNK], 0, tl.int32)
        for other in range(allowed_rows):
            other_column = tl.load(integers + bound * COLUMN_OF + other)
            before = tl.where(transposed, other_column < column, other < number)
            place += tl.where(before & (other_column >= 0), 1, 0)
        tl.store(floats + bound * VALUE + place, sign * read_costs(pointers, has_column, sign), mask=has_column)
    tl.debug_barrier()
    total = sign * 0.0
    for number in range(pairs):
        total += tl.load(floats + bound * VALUE + number)
    return total + 0.0


@triton.jit
def _joined_notes(notes, count, CHUNK: tl.constexpr):
    """Return the union of the bits of all notes; there are two bits."""
    first_bit = 0
    second_bit = 0
    for first in range(0, count, CHUNK):
        place = first + tl.arange(0, CHUNK)
        note = tl.load(notes + place, mask=place < count, other=0)
        first_bit = tl.maximum(first_bit, tl.max(note & 1, 0))
        second_bit = tl.maximum(second_bit, tl.max(note & 2, 0))
    return first_bit | second_bit
