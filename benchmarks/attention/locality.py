"""Simulate how often rows come from a first-level cache, by the order and size of a kernel's programs.

    python -m benchmarks.attention.locality [--noise 2] [--multiprocessors 4]

An encoder layer at 800x1333 in bfloat16, B = 1, every pixel a query, offsets as drawn initially plus normal noise. Each
multiprocessor of an H100 has one cache of 128-byte lines, least recently used line out first, filled by sectors of 32
bytes. A line has the rows of two heads, a program reads one head, so half of a cache is of use. Programs start in
the order of their numbers, one on each multiprocessor in turn until all are full, then where one has ended; their
durations differ at random. Resident warps take turns, one sample of 8 queries at a time. Positions and weights pass
through the same cache. This is a model, not a measurement: real caches hash addresses, and blocks start less regularly.
"""

from __future__ import annotations

import argparse
import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.attention.workloads import COCO

HEADS, POINTS = 8, 4
STRIP = 8  # rows of pixels a strip, as the kernels order queries
MULTIPROCESSORS = 132
CACHE_KB = 256  # of a multiprocessor, first-level cache and shared memory together
LINE, SECTOR, ROW = 128, 32, 64
SECOND_LEVEL_TB = 5.5  # a second, what an H100's second-level cache delivers


@dataclass(frozen=True)
class Kernel:
    """A program of `warps` warps: each has 8 queries at once, `parts` times in a row; all of them consecutive."""

    name: str
    warps: int
    resident: int  # programs a multiprocessor
    parts: int = 1
    shared_kb: int = 0  # taken from the cache
    own_queue: bool = False  # each multiprocessor has its own consecutive programs

    @property
    def queries(self) -> int:
        return 8 * self.warps * self.parts


# Programs a multiprocessor: by registers, of which a multiprocessor has 65,536; at most 32 programs.
KERNELS = (
    Kernel("Triton forward until now: 1 warp x 8 queries, 80 registers", 1, 25),
    Kernel("Triton forward, 64 registers: 1 warp x 8", 1, 32),
    Kernel("1 warp x 8, two times in turn", 1, 32, parts=2),
    Kernel("1 warp x 8, eight times in turn", 1, 32, parts=8),
    Kernel("1 warp x 8, a queue of programs for each multiprocessor", 1, 32, own_queue=True),
    Kernel("2 warps x 8", 2, 16),
    Kernel("4 warps x 8", 4, 8),
    Kernel("4 warps x 8, two times in turn", 4, 8, parts=2),
    Kernel("8 warps x 8", 8, 4),
    Kernel("Triton backward until now: 1 warp x 8, 92 registers", 1, 21),
    Kernel("Triton backward, 88 registers: 4 warps x 8", 4, 5),
    Kernel("8 warps x 8", 8, 2),
    Kernel("CUDA forward: 8 warps x 8, 64 KB shared memory", 8, 4, shared_kb=64),
    Kernel("CUDA backward: 8 warps x 8, 100 KB shared memory", 8, 3, shared_kb=100),
)


def query_order(shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Order pixels in strips of 8 rows, column by column: 64 in a row are a tile of 8 x 8. [S]"""
    order, start = [], 0
    for height, width in shapes:
        rows = np.arange(start, start + height * width).reshape(height, width)
        order += [rows[top : top + STRIP].T.ravel() for top in range(0, height, STRIP)]
        start += height * width
    return np.concatenate(order)


def sampled_rows(shapes: tuple[tuple[int, int], ...], noise: float, seed: int = 0) -> np.ndarray:
    """Return the row of value that each corner of each sample reads, -1 outside. [S queries, M, L * P, 4]"""
    generator = np.random.default_rng(seed)
    angles = np.arange(HEADS) * (2 * np.pi / HEADS)
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    rays /= np.abs(rays).max(-1, keepdims=True)
    ray = rays[:, None] * np.arange(1, POINTS + 1)[:, None]  # [M, P, 2]
    centres = [(np.indices(shape).reshape(2, -1).T[:, ::-1] + 0.5) / (shape[1], shape[0]) for shape in shapes]
    centre = np.concatenate(centres)[:, None, None]  # [S, 1, 1, 2]
    rows, start = [], 0
    for height, width in shapes:
        pixels = centre * (width, height) - 0.5 + ray + noise * generator.standard_normal((len(centre), *ray.shape))
        x, y = np.moveaxis(np.floor(pixels).astype(np.int32), -1, 0)
        for dy in (0, 1):
            for dx in (0, 1):
                inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
                rows.append(np.where(inside, start + (y + dy) * width + x + dx, -1).astype(np.int32))
        start += height * width
    by_level = np.stack(rows, -1).reshape(*rows[0].shape, len(shapes), 4)  # [S, M, P, L, 4]
    return by_level.swapaxes(2, 3).reshape(len(centre), HEADS, -1, 4)


class Cache:
    """Lines with the sectors that were filled, the least recently used one first."""

    def __init__(self, kilobytes: int) -> None:
        self.capacity = kilobytes * 1024 // LINE
        self.lines: OrderedDict[int, int] = OrderedDict()
        self.hits = self.misses = 0  # in sectors

    def read(self, address: int, size: int) -> None:
        first, last = address // SECTOR, (address + size - 1) // SECTOR
        line = first * SECTOR // LINE  # no read crosses a line
        requested = 0
        for sector in range(first, last + 1):
            requested |= 1 << (sector % (LINE // SECTOR))
        held = self.lines.pop(line, 0)
        self.hits += (held & requested).bit_count()
        self.misses += (requested & ~held).bit_count()
        self.lines[line] = held | requested
        if len(self.lines) > self.capacity:
            self.lines.popitem(last=False)


def schedule(kernel: Kernel, programs: int, seed: int = 0) -> list[list[list[int]]]:
    """Return the programs of each place of each multiprocessor, in order. [multiprocessor][place][...]"""
    generator = np.random.default_rng(seed)
    durations = generator.uniform(0.85, 1.15, programs)
    places: list[list[list[int]]] = [[[] for _ in range(kernel.resident)] for _ in range(MULTIPROCESSORS)]
    share = -(-programs // MULTIPROCESSORS)
    free = [(0.0, place, processor) for place in range(kernel.resident) for processor in range(MULTIPROCESSORS)]
    heapq.heapify(free)
    taken = [0] * MULTIPROCESSORS
    for number in range(programs):
        time, place, processor = heapq.heappop(free)
        if kernel.own_queue:
            while taken[processor] == share or processor * share + taken[processor] >= programs:
                time, place, processor = heapq.heappop(free)
            program = processor * share + taken[processor]
            taken[processor] += 1
        else:
            program = number
        places[processor][place].append(program)
        heapq.heappush(free, (time + durations[number], place, processor))
    return places


def sector_reads(kernel: Kernel, program: int, warp: int, rows: np.ndarray, order: np.ndarray) -> Iterator[list[int]]:
    """Yield the addresses that each step of a warp reads: one sample each of 8 queries."""
    tiles = -(-len(order) // kernel.queries)
    head, tile = divmod(program, tiles)
    samples = rows.shape[2]
    beyond = len(order) * HEADS * ROW  # positions and weights follow value
    for part in range(kernel.parts):
        first = tile * kernel.queries + (part * kernel.warps + warp) * 8
        queries = order[first : first + 8]
        for sample in range(samples):
            read = rows[queries, head, sample].ravel()
            addresses = ((read[read >= 0].astype(np.int64) * HEADS + head) * ROW).tolist()
            if sample % 4 == 0:
                items = queries.astype(np.int64) * HEADS + head
                inputs = beyond + items * (samples * 4) + sample * 4, 2 * beyond + items * (samples * 2) + sample * 2
                addresses += [-int(address) for each in inputs for address in each]
            yield addresses


def _steps(kernel: Kernel, programs: list[int], warp: int, rows: np.ndarray, order: np.ndarray) -> Iterator[list[int]]:
    for program in programs:
        yield from sector_reads(kernel, program, warp, rows, order)


@dataclass(frozen=True)
class Reuse:
    """What the caches did, of rows of value alone."""

    sectors: int
    misses: int

    @property
    def times(self) -> float:
        """Return how often a fetched sector is read."""
        return self.sectors / self.misses


def simulate(kernel: Kernel, rows: np.ndarray, order: np.ndarray, multiprocessors: int, seed: int = 0) -> Reuse:
    programs = -(-len(order) // kernel.queries) * HEADS
    places = schedule(kernel, programs, seed)
    chosen = np.random.default_rng(seed).choice(MULTIPROCESSORS, multiprocessors, replace=False)
    sectors = misses = 0
    for processor in chosen:
        cache = Cache(CACHE_KB - kernel.shared_kb)
        warps = [
            _steps(kernel, place, warp, rows, order) for place in places[processor] for warp in range(kernel.warps)
        ]
        while warps:
            left = []
            for warp in warps:
                step = next(warp, None)
                if step is None:
                    continue
                left.append(warp)
                for address in step:
                    if address < 0:
                        before = cache.hits, cache.misses
                        cache.read(-address, SECTOR)
                        cache.hits, cache.misses = before
                    else:
                        cache.read(address, ROW)
            warps = left
        sectors += cache.hits + cache.misses
        misses += cache.misses
    return Reuse(sectors, misses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=2.0, help="standard deviation of the offsets in pixels")
    parser.add_argument("--multiprocessors", type=int, default=4, help="of 132, how many are simulated")
    options = parser.parse_args()
    rows, order = sampled_rows(COCO, options.noise), query_order(COCO)
    total = 2 * int((rows >= 0).sum())
    print(
        f"{total} sectors are read in all; from the second level alone {total * SECTOR / SECOND_LEVEL_TB / 1e6:.0f} us"
    )
    print("| kernel | reads of a fetched sector | us of second-level traffic |\n| --- | ---: | ---: |")
    for kernel in KERNELS:
        reuse = simulate(kernel, rows, order, options.multiprocessors)
        microseconds = total / reuse.times * SECTOR / SECOND_LEVEL_TB / 1e6
        print(f"| {kernel.name} | {reuse.times:.2f} | {microseconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
