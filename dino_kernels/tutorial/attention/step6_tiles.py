"""Step 6: one head at a time from a copy in one piece, queries in tiles of 8 x 8 pixels: rows stay in the caches.

python -m dino_kernels.tutorial.attention.step6_tiles
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem
from dino_kernels.tutorial.attention.step2_vectors import corners

LINE, WAYS = 64, 8  # bytes; lines with the same index that a cache holds


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; differentiable."""
    return call.attend("step6_tiles.cpp", "step6_tiles.cpp", given)


def misses(lines: Iterable[int], kilobytes: int) -> int:
    """Return how many of the reads of cache lines miss a cache of this size, least recently used line out first."""
    sets: list[dict[int, None]] = [{} for _ in range(kilobytes * 1024 // LINE // WAYS)]
    missed = 0
    for line in lines:
        ways = sets[line % len(sets)]
        if line in ways:
            del ways[line]  # and in again, as the newest
        else:
            missed += 1
            if len(ways) == WAYS:
                del ways[next(iter(ways))]
        ways[line] = None
    return missed


def lines_read(given: Problem, by_head: bool, queries: int = 512) -> Iterable[int]:
    """Yield the cache lines of the first image's rows, in the order of steps 4 and 5, or of this step.

    Some queries of the middle: `queries` of all heads, or with `by_head` M times as many of one head.
    """
    (_, S, M, D), Q = given.value.shape, given.logits.shape[1]
    row_bytes = D * given.value.element_size()
    rows = corners(given)[0][0].flatten(2) // M  # [Q, M, 4 K]
    rows = rows[call.tile_order(tuple(given.shapes), Q)] if by_head else rows
    count = min(Q, queries * (M if by_head else 1))
    first = (Q - count) // 2
    for items in rows[first : first + count, : 1 if by_head else M].tolist():
        for m, item in enumerate(items):
            for row in item:
                address = row * row_bytes if by_head else (row * M + m) * row_bytes
                if row != S:  # outside: nothing is read
                    yield from range(address // LINE, (address + row_bytes - 1) // LINE + 1)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    shares = []
    for by_head in (False, True):
        lines = list(lines_read(given, by_head))
        shares.append([f"{100 * misses(lines, kilobytes) / len(lines):.0f} %" for kilobytes in (32, 1024)])
    (small, large), (small_now, large_now) = shares
    return f"reads that miss a cache of 32 KiB: {small} before, {small_now} now; of 1 MiB: {large}, {large_now}"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step6_tiles")
