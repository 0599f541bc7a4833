"""The simulation of first-level caches: what its kernels read, and what its caches keep."""

import numpy as np
import pytest

from benchmarks.attention import locality
from benchmarks.attention.locality import HEADS, KERNELS, ROW, SECTOR

SHAPES = ((20, 24), (10, 12))
ROWS, ORDER = locality.sampled_rows(SHAPES, 2.0), locality.query_order(SHAPES)


def test_a_cache_keeps_the_lines_used_last_and_fills_them_by_sectors():
    cache = locality.Cache(1)  # 8 lines of 128 bytes
    reads = [(0, ROW), (0, ROW), (ROW, SECTOR)]  # the last: the same line, another head's row
    reads += [(128 * line, SECTOR) for line in range(1, 8)] + [(0, SECTOR), (128 * 8, SECTOR), (128, SECTOR)]
    hits = []
    for address, size in reads:
        cache.read(address, size)
        hits.append(cache.hits)
    assert hits == [0, 2] + 8 * [2] + [3, 3, 3] and cache.misses == 2 + 8 + 2


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_program_runs_once_and_every_corner_is_read_once(kernel):
    programs = range(-(-len(ORDER) // kernel.queries) * HEADS)
    places = locality.schedule(kernel, len(programs))
    assert sorted(number for processor in places for place in processor for number in place) == list(programs)
    steps = [locality.sector_reads(kernel, p, warp, ROWS, ORDER) for p in programs for warp in range(kernel.warps)]
    read = sorted(address for warp in steps for step in warp for address in step if address >= 0)
    expected = (ROWS.astype(np.int64) * HEADS + np.arange(HEADS)[:, None, None]) * ROW
    assert read == sorted(expected[ROWS >= 0].tolist())
