"""The layout of a problem's state in its two pieces of scratch memory, float64 and int32.

The solver's rows are the smaller side. Allowed rows are numbered 0, 1, ... in ascending order, at most n, the bound of
the smaller side. Arrays over allowed rows, and over slots (matched columns, in the order of matching), have n elements;
arrays over columns have m. The numbers below count arrays of n elements; arrays of m elements come after them.
"""

from __future__ import annotations

import triton.language as tl

# float64, over allowed rows or slots
ROW_DUAL = tl.constexpr(0)
CHEAPEST_COST = tl.constexpr(1)  # of each allowed row: the cost of its CHEAPEST
SLOT_DUAL = tl.constexpr(2)
SLOT_DISTANCE = tl.constexpr(3)
VALUE = tl.constexpr(4)  # the terms of the objective, in the order of its sum
FLOATS = tl.constexpr(5)

# int32, over allowed rows or slots
ROW = tl.constexpr(0)  # of each allowed row: its number in the matrix
COLUMN_OF = tl.constexpr(1)  # of each allowed row, or -1
CHEAPEST = tl.constexpr(2)  # of each allowed row: its cheapest column among those unmatched at the search
SLOT_OF = tl.constexpr(3)  # of each allowed row, or -1
SLOT_ROW = tl.constexpr(4)  # allowed row
SLOT_COLUMN = tl.constexpr(5)
SLOT_PREVIOUS = tl.constexpr(6)  # allowed row from which the path reached the slot
SLOT_DONE = tl.constexpr(7)
FREE = tl.constexpr(8)  # allowed rows whose cheapest column was already matched
INTEGERS = tl.constexpr(9)

NONE = tl.constexpr(2**31 - 1)  # greater than any index


def sizes(n: int, m: int, as_scipy: bool) -> tuple[int, int]:
    """Return the numbers of float64 and of int32 that a problem needs."""
    return FLOATS.value * n + (2 * m if as_scipy else 0), INTEGERS.value * n + (3 if as_scipy else 1) * m
