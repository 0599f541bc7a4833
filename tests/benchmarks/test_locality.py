"""The simulation of first-level caches: that it reads what kernels read, and what its caches keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.attention.locality import (
    HEADS,
    KERNELS,
    MULTIPROCESSORS,
    ROW,
    SECTOR,
    Cache,
    query_order,
    sampled_rows,
    schedule,
    sector_reads,
    simulate,
)

SHAPES = ((20, 24), (10, 12))


def test_a_cache_keeps_the_lines_used_last_and_fills_them_by_sectors():
    cache = Cache(1)  # 8 lines of 128 bytes
    cache.read(0, ROW)
    cache.read(0, ROW)
    assert (cache.hits, cache.misses) == (2, 2)
    cache.read(ROW, SECTOR)  # the same line, but another head's row
    assert (cache.hits, cache.misses) == (2, 3)
    for line in range(1, 8):
        cache.read(128 * line, SECTOR)
    cache.read(0, SECTOR)
    assert cache.hits == 3
    cache.read(128 * 8, SECTOR)
    cache.read(128, SECTOR)
    assert cache.hits == 3, "the line used least recently made room"


def test_queries_come_in_tiles_of_8_x_8_pixels():
    order = query_order(SHAPES)
    assert sorted(order) == list(range(600))
    rows, columns = np.divmod(order[:64], 24)
    assert set(rows) == set(range(8)) and set(columns) == set(range(8))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_program_runs_once_and_every_corner_is_read_once(kernel):
    rows, order = sampled_rows(SHAPES, 2.0), query_order(SHAPES)
    programs = -(-len(order) // kernel.queries) * HEADS
    places = schedule(kernel, programs)
    assert len(places) == MULTIPROCESSORS
    assert sorted(number for places_ in places for place in places_ for number in place) == list(range(programs))
    read = [
        address
        for program in range(programs)
        for warp in range(kernel.warps)
        for step in sector_reads(kernel, program, warp, rows, order)
        for address in step
        if address >= 0
    ]
    held = rows >= 0
    expected = (rows.astype(np.int64) * HEADS + np.arange(HEADS)[:, None, None]) * ROW
    assert sorted(read) == sorted(expected[held].tolist())


def test_warps_of_a_program_share_rows():
    rows, order = sampled_rows(SHAPES, 2.0), query_order(SHAPES)
    alone = next(kernel for kernel in KERNELS if kernel.warps == 1)
    together = replace(alone, warps=8, resident=3)
    assert simulate(together, rows, order, 40).times > 1.5 * simulate(alone, rows, order, 40).times > 1
