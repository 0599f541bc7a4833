"""The emulation of CUDA: right kernels get right results in any order, and each kind of wrong kernel is noticed."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.cuda.emulation.backend import schedule
from tests.cuda.emulation.build import build, sanitizer_runtime
from tests.cuda.emulation.kernels import SEEDS, in_every_order, integers, kernels, launch, zeros


@pytest.mark.parametrize("memory", ["dynamic", "static"])
@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 64), (5, 256), (2, 1024)])
def test_a_block_adds_up_its_numbers(memory, blocks, threads):
    n = blocks * threads - 7
    given = integers(blocks * threads)
    padded = torch.where(torch.arange(blocks * threads) < n, given, 0)
    expected = padded.view(blocks, threads).sum(1, dtype=torch.int32)
    name = f"block_sum_in_{memory}_shared_memory"
    for result in in_every_order(lambda: launch(name, blocks, threads, given, zeros(blocks), n, shared=4 * threads)):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
def test_shuffles_stay_within_their_width_as_cuda_specifies(width):
    given = integers(64)
    expected = zeros(4, 64)
    for t in range(64):
        warp, lane = t // 32 * 32, t % 32
        first = lane // width * width
        sources = [
            first + (t * 7 + 3) % width,
            lane ^ 5 if lane ^ 5 < first + width else lane,  # may reach into an earlier part of the warp
            lane + 3 if lane + 3 < first + width else lane,
            lane - 3 if lane - 3 >= first else lane,
        ]
        for row, source in enumerate(sources):
            expected[row, t] = given[warp + source]
    for result in in_every_order(lambda: launch("shuffles", 1, 64, given, zeros(4, 64), width)):
        assert torch.equal(result, expected)


def test_shuffles_carry_8_bytes():
    given = torch.randn(32, dtype=torch.float64)
    result = launch("shuffles_of_8_bytes", 1, 32, given, torch.zeros(32, dtype=torch.float64))
    assert torch.equal(result, given.view(16, 2).flip(1).flatten())


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_lanes_that_went_apart_work_together_in_masks_of_their_own(parts):
    given = integers(64, low=-2, high=3)
    expected = torch.zeros(7, 64, dtype=torch.int64)
    for t in range(64):
        numbers = {lane: int(given[t // 32 * 32 + lane]) for lane in range(t % 32 % parts, 32, parts)}
        ballot = sum(1 << lane for lane, number in numbers.items() if number > 0)
        match = sum(1 << lane for lane, number in numbers.items() if number == numbers[t % 32])
        values = list(numbers.values())
        positive = [number > 0 for number in values]
        column = [sum(values), min(values), max(values), ballot, any(positive), all(positive), match]
        expected[:, t] = torch.tensor(column)
    for result in in_every_order(lambda: launch("partial_masks", 1, 64, given, zeros(7, 64), parts)):
        assert torch.equal(result, expected.to(torch.int32))


@pytest.mark.parametrize("staying", [1, 31, 32, 33, 90, 128])
def test_nobody_waits_for_threads_that_have_returned(staying):
    given = integers(128)
    positive = given[:staying] > 0
    lanes = torch.tensor([max(0, min(32, staying - first)) for first in range(0, 128, 32)])
    expected = torch.zeros(4, 128, dtype=torch.int64)
    expected[:3, :staying] = torch.tensor([positive.sum(), positive.any(), positive.all()])[:, None]
    expected[3, :staying] = ((1 << lanes) - 1).repeat_interleave(32)[:staying]
    for result in in_every_order(lambda: launch("early_exits", 1, 128, given, zeros(4, 128), staying)):
        assert torch.equal(result, expected.to(torch.int32))


def test_every_thread_of_a_grid_of_three_dimensions_runs_once():
    expected = torch.arange(24)[:, None] * 1000 + torch.arange(60)
    for result in in_every_order(lambda: launch("places", (3, 4, 2), (4, 3, 5), zeros(1), zeros(24, 60))):
        assert torch.equal(result, expected.to(torch.int32))


@pytest.mark.parametrize(
    ("grid", "block", "shared"), [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, (32, 32, 2), 0), (1, 32, 2**20)]
)
def test_a_launch_that_no_gpu_could_do_is_refused(grid, block, shared):
    with pytest.raises(RuntimeError, match=r"bad launch configuration|too much dynamic shared memory"):
        launch("places", grid, block, zeros(1), zeros(1), shared=shared)


def test_atomics_lose_nothing():
    given = integers(8 * 96, low=0, high=10)
    for result in in_every_order(lambda: launch("histogram", 8, 96, given, zeros(10))):
        assert torch.equal(result, given.bincount(minlength=10).int())


def test_loops_of_compare_and_swap_end_with_the_right_number():
    given = torch.rand(4 * 64)
    for result in in_every_order(lambda: launch("largest_by_compare_and_swap", 4, 64, given, torch.zeros(1))):
        assert result == given.max()


def test_exchanges_make_a_list_of_all_threads():
    def call() -> Tensor:
        out = zeros(1 + 4 * 64)
        out[0] = -1
        return launch("linked_list", 4, 64, zeros(1), out)

    orders = set()
    for result in in_every_order(call):
        following, walked = result.tolist(), []
        at = following[0]
        while at >= 0:
            walked.append(at)
            at = following[1 + at]
        assert sorted(walked) == list(range(4 * 64))
        orders.add(tuple(walked))
    assert len(orders) == len(SEEDS) + 1


def test_min_max_bits_and_subtraction():
    given = integers(77)
    numbers = given.tolist()

    def call() -> Tensor:
        return launch("other_atomics", 1, 77, given, torch.tensor([9999, -9999, -1, 0, 0, 0], dtype=torch.int32))

    bits = [functools.reduce(operation, numbers) for operation in (int.__and__, int.__or__, int.__xor__)]
    for result in in_every_order(call):
        assert result.tolist() == [min(numbers), max(numbers), *bits, -sum(numbers)]


def test_float32_sums_in_global_memory_flush_subnormal_numbers():
    """As REDG.E.ADD.F32.FTZ does: operands and results, with their sign."""
    smallest, subnormal = 2.0**-126, 2.0**-130
    before = torch.tensor([0, subnormal, smallest, smallest, -0.0, 1, subnormal, smallest, math.nan])
    given = torch.tensor([subnormal, smallest, -subnormal, -1.5 * smallest, -subnormal, 1, subnormal, smallest, 1])
    flushed = torch.tensor([0, smallest, smallest, -0.0, -0.0, 2, 0, 2 * smallest, math.nan])
    for name, expected in (("add_floats_globally", flushed), ("add_floats_in_shared_memory", before + given)):
        result = launch(name, 1, len(given), given, before.clone(), shared=4 * len(given))
        assert torch.equal(result.nan_to_num(9).view(torch.int32), expected.nan_to_num(9).view(torch.int32)), name
    assert not torch.equal(flushed[:8], (before + given)[:8])
    doubles = torch.tensor([2.0**-1060], dtype=torch.float64)
    assert launch("add_doubles", 1, 1, doubles, doubles.clone()) == 2.0**-1059


@pytest.mark.parametrize("name", ["add_fours_at_once", "add_fours_one_by_one"])
def test_four_sums_at_once_lose_nothing(name):
    given = integers(4 * 96, 4).float()
    by_thread = torch.arange(4 * 96) % 96 % 5
    expected = torch.stack([given[by_thread == i].sum(0) for i in range(5)])
    for result in in_every_order(lambda: launch(name, 4, 96, given, torch.zeros(5, 4), 5)):
        assert torch.equal(result, expected)


def test_four_sums_at_once_must_be_aligned_and_in_global_memory():
    assumed = "may assume what is not true: __isGlobal"
    for n, message in ((2, "not aligned to 16 bytes"), (0, "in global memory only"), (-1, assumed)):
        with pytest.raises(RuntimeError, match=message):
            launch("add_four_where_none_may", 1, 1, torch.zeros(1), torch.zeros(8), n, shared=64)


def test_a_seed_gives_one_order_and_another_seed_another():
    def order(seed: int) -> list[int]:
        with schedule(seed, kernels()):
            return launch("order_of_turns", 4, 64, zeros(1), zeros(257), 256)[:256].tolist()

    assert order(0) == list(range(256))
    assert order(1) == order(1) != order(2)
    orders = [order(seed) for seed in SEEDS]
    assert all(sorted(turns) == list(range(256)) for turns in orders)
    assert {turns[0] // 64 for turns in orders} == {0, 1, 2, 3}, "blocks that come first"
    assert {turns[0] % 64 // 32 for turns in orders} == {0, 1}, "warps that come first"
    assert len({turns[0] % 32 for turns in orders}) > 8, "lanes that come first"


def test_python_threads_launch_at_once():
    def call(seed: int) -> Tensor:
        with schedule(seed, kernels()):
            given = torch.arange(seed, seed + 1024, dtype=torch.int32)
            return launch("block_sum_in_static_shared_memory", 1, 1024, given, zeros(1), 1024)

    with ThreadPoolExecutor(8) as pool:
        for seed, result in enumerate(pool.map(call, range(200))):
            assert result == sum(range(seed, seed + 1024))


@pytest.mark.parametrize("barrier", ["syncthreads", "syncwarp"])
def test_a_missing_barrier_shows_in_a_drawn_order_only(barrier):
    """Why orders are drawn: in plain order this kernel is right without its barrier."""
    threads = 128 if barrier == "syncthreads" else 32
    given = integers(threads, low=1)
    expected = torch.cat([zeros(1), given[:-1]])

    def results(name: str) -> list[Tensor]:
        return in_every_order(lambda: launch(name, 1, threads, given, zeros(threads), shared=4 * threads))

    assert all(torch.equal(result, expected) for result in results(f"with_{barrier}"))
    in_plain_order, *drawn = results(f"without_{barrier}")
    assert torch.equal(in_plain_order, expected)
    assert not any(torch.equal(result, expected) for result in drawn)


def test_blocks_that_build_on_one_another_show_in_a_drawn_order_only():
    given = integers(20, low=1)
    expected = given.cumsum(0, dtype=torch.int32)
    in_plain_order, *drawn = in_every_order(lambda: launch("sum_of_earlier_blocks", 20, 1, given, zeros(20)))
    assert torch.equal(in_plain_order, expected)
    assert not any(torch.equal(result, expected) for result in drawn)


def test_an_update_that_is_not_atomic_shows_in_a_drawn_order_only():
    in_plain_order, *drawn = in_every_order(lambda: launch("add_without_atomics", 1, 256, zeros(1), zeros(1)))
    assert in_plain_order == 256
    assert all(result < 256 for result in drawn)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent_barrier", "deadlock: 10 threads wait at a barrier of the block and 22 for lanes of their warp"),
        ("different_barriers", "threads of a block meet at different kinds of barriers"),
        ("different_warp_operations", "lanes of a warp meet at different warp operations"),
        ("foreign_mask", "a thread is not in the mask of its own warp operation"),
    ],
)
def test_a_broken_rule_raises_and_the_next_launch_works(name, message):
    for seed in (0, *SEEDS):
        with schedule(seed, kernels()):
            with pytest.raises(RuntimeError, match=rf"^emulated CUDA: {message}, in .*block \(0, 0, 0\)$"):
                launch(name, 1, 32, zeros(32), zeros(32))
            assert launch("histogram", 1, 32, zeros(32), zeros(1)) == 32


def test_a_device_assertion_raises_with_its_place_and_the_next_launch_works():
    given = zeros(3 * 64)
    given[64 + 37] = -1
    message = r"^emulated CUDA: a device assertion failed, in thread \(37, 0, 0\) of block \(1, 0, 0\)$"
    for seed in (0, *SEEDS):
        with schedule(seed, kernels()):
            with pytest.raises(RuntimeError, match=message):
                launch("device_assertion", 3, 64, given, zeros(3 * 64))
            assert (launch("device_assertion", 1, 64, given, zeros(64)) == 1).all()


def test_dynamic_shared_memory_begins_as_nan_in_every_block():
    result = launch("uninitialised_shared_memory", 3, 64, torch.zeros(64), torch.zeros(3 * 64), shared=256)
    assert result.isnan().all()


WRITE = """
import ctypes, sys
launch = (ctypes.c_uint * 8)(1, 1, 1, 32, 1, 1, 128, 0)
ctypes.CDLL(sys.argv[1]).run_write_past_shared_memory(launch, None, None, int(sys.argv[2]))
print("survived")
"""


def test_the_sanitized_build_catches_a_write_past_dynamic_shared_memory():
    runtime = sanitizer_runtime()
    if runtime is None:
        pytest.skip("the compiler has no AddressSanitizer")
    library = str(build("test_kernels", sanitize=True))
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}

    def write(offset: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITE, library, str(offset)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert write(0).stdout == "survived\n"
    past_the_end = write(1)
    assert past_the_end.returncode != 0 and "survived" not in past_the_end.stdout
    assert "heap-buffer-overflow" in past_the_end.stderr and "write_past_shared_memory" in past_the_end.stderr
