"""The emulation of CUDA: right kernels get right results in any order, and each kind of wrong kernel is noticed."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.cuda.emulation.backend import SANITIZED, schedule
from tests.cuda.emulation.build import build, sanitizer_runtime

SEEDS = range(1, 21)


@functools.cache
def kernels() -> ctypes.CDLL:
    """The kernels in emulation/test_kernels.cu."""
    return ctypes.CDLL(str(build("test_kernels", sanitize=SANITIZED)))


class Launch(ctypes.Structure):
    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_size_t))


Size = int | tuple[int, ...]


def launch(name: str, grid: Size, block: Size, given: Tensor, out: Tensor, n: int = 0, shared: int = 0) -> Tensor:
    """Runs a kernel, which fills `out`.

    Raises:
        RuntimeError: what the emulation found wrong.
    """
    sizes = [(*(size if isinstance(size, tuple) else (size,)), 1, 1)[:3] for size in (grid, block)]
    function = getattr(kernels(), f"run_{name}")
    function.restype = ctypes.c_char_p
    how = Launch((ctypes.c_uint * 3)(*sizes[0]), (ctypes.c_uint * 3)(*sizes[1]), shared)
    error = function(ctypes.byref(how), ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()), n)
    if error is not None:
        raise RuntimeError(error.decode())
    return out


def in_every_order(call: Callable[[], Tensor]) -> list[Tensor]:
    """The results in plain order, first, and in drawn ones."""
    results = []
    for seed in (0, *SEEDS):
        with schedule(seed, kernels()):
            results.append(call())
    return results


def integers(*size: int, low: int = -1000, high: int = 1000) -> Tensor:
    return torch.randint(low, high, size, generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32)


# Blocks and warps.


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


# Atomics and order.


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
    assumed = "told to assume what is wrong: __isGlobal"
    for n, message in ((2, "not aligned to 16 bytes"), (0, "in global memory only"), (-1, assumed)):
        with pytest.raises(RuntimeError, match=message):
            launch("add_four_where_none_may", 1, 1, torch.zeros(1), torch.zeros(8), n, shared=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_sums_in_fixed_point_become_the_numbers_that_a_division_by_the_scale_gives(dtype):
    """For every scale whose inverse is a normal number; `Sums::set_scale` makes no other."""
    limit = 126 if dtype == torch.float32 else 1022
    scales = torch.ldexp(torch.ones(2 * limit + 1, dtype=dtype), torch.arange(-limit, limit + 1))
    assert (scales > 0).all() and (scales.log2() == torch.arange(-limit, limit + 1)).all()
    scales = torch.cat([scales, torch.tensor([math.nan], dtype=dtype)])[:, None]
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randint(-(2**62), 2**62, (len(scales), 50), generator=generator)
    drawn = drawn >> torch.randint(0, 62, drawn.shape, generator=generator)
    drawn[:, :6] = torch.tensor([0, 1, -1, 2**62, -(2**62), 2**53 + 1])
    poisoned = torch.tensor([-(2**63), -(2**63) + 12345, 2**62 + 1, -(2**62) - 1])
    coarse = torch.cat([drawn, poisoned.expand(len(scales), 4)], 1)
    numbers, scales = coarse.double(), scales.expand(coarse.shape)
    if dtype == torch.float32:
        given = torch.stack([coarse, scales.contiguous().view(torch.int32).long() & 0xFFFFFFFF], -1)
    else:
        fine_scales = torch.ldexp(torch.ones(coarse.shape, dtype=dtype), torch.arange(coarse.shape[1]) % 40 + 22)
        fine = torch.randint(-(2**61), 2**61, coarse.shape, generator=generator)
        fine = fine >> torch.randint(0, 62, coarse.shape, generator=generator)
        numbers = numbers + fine.double() / fine_scales
        given = torch.stack([coarse, fine, scales.contiguous().view(torch.int64), fine_scales.view(torch.int64)], -1)
    expected = (numbers / scales.double()).to(dtype)
    expected[:, -4:] = math.nan
    subnormal = (expected != 0) & (expected.abs() < torch.finfo(dtype).smallest_normal)
    assert expected.isinf().any() and bool(subnormal.any()) is (dtype == torch.float64)
    name = f"sums_from_fixed_point_{str(dtype).removeprefix('torch.')}"
    result = launch(name, coarse.numel() // 1024 + 1, 1024, given, torch.zeros_like(expected), coarse.numel())
    assert same_numbers(result.view(torch.int32 if dtype == torch.float32 else torch.int64), expected)


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


# Numbers.


TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}


def same_numbers(bits: Tensor, expected: Tensor) -> bool:
    """The same bits, except that any NaN is as good as another."""
    got = bits.view(expected.dtype)
    return bool(((bits == expected.view(bits.dtype)) | (got.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("name", TYPES)
def test_all_16_bit_numbers_become_the_right_float(name):
    given = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    result = launch(f"{name}_to_float", 64, 1024, given, torch.zeros(2**16), 2**16)
    assert same_numbers(result.view(torch.int32), given.view(TYPES[name]).float())


def neighbours(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit dtype, the middle between it and the next, and the floats on both sides of these."""
    numbers = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = ((numbers[:-1].double() + numbers[1:].double()) / 2).float()
    exact = torch.cat([numbers, ties]).view(torch.int32)
    bits = torch.cat([exact - 1, exact, exact + 1])
    return torch.cat([bits, bits | -(2**31)]).view(torch.float32)


@pytest.mark.parametrize("name", TYPES)
def test_floats_round_to_16_bits_as_in_pytorch(name):
    generator = torch.Generator().manual_seed(2)
    any_bits = torch.randint(-(2**31), 2**31, (2**18,), generator=generator).int().view(torch.float32)
    given = torch.cat([neighbours(TYPES[name]), any_bits])
    assert given.isnan().any() and given.isinf().any() and ((given != 0) & (given.abs() < 1e-38)).any()
    out = torch.zeros(given.numel(), dtype=torch.int16)
    launch(f"float_to_{name}", given.numel() // 1024 + 1, 1024, given, out, given.numel())
    assert same_numbers(out, given.to(TYPES[name]))


def test_pairs_round_as_single_numbers_do():
    given = torch.randn(64, 2, generator=torch.Generator().manual_seed(8))
    result = launch("pairs_through_16_bits", 1, 64, given, torch.zeros(2, 64, 2))
    assert torch.equal(result, torch.stack([given.bfloat16().float(), given.half().float()]))


def test_bytes_are_chosen_by_three_bits_each():
    """nvcc masks the fourth, although the instruction has a meaning for it: see test_device_only_lines.py."""
    words = torch.tensor([0x83726150, 0x07F6E5D4], dtype=torch.int64)
    selectors = torch.arange(2**16)
    all_bytes = torch.tensor([word >> shift & 0xFF for word in words.tolist() for shift in (0, 8, 16, 24)])
    expected = torch.stack([all_bytes[selectors >> 4 * i & 7] << 8 * i for i in range(4)]).sum(0)
    given = torch.cat([words, selectors]).to(torch.int32)
    result = launch("choose_bytes", 64, 1024, given, zeros(2**16), 2**16)
    assert torch.equal(result.long() & 0xFFFFFFFF, expected)


def test_funnel_shifts_wrap():
    low, high = 0x89ABCDEF, 0x12345678
    both, shifts = high << 32 | low, range(64)
    expected = [(both << shift % 32 >> 32) & 0xFFFFFFFF for shift in shifts]
    expected += [(both >> shift % 32) & 0xFFFFFFFF for shift in shifts]
    given = torch.tensor([low, high, *shifts]).to(torch.int32)
    result = launch("shift_through_two_words", 1, 64, given, zeros(128))
    assert (result.long() & 0xFFFFFFFF).tolist() == expected


def test_numbers_are_rounded_down_to_integers():
    given = torch.tensor([-2.0, -1.5, -1.0, -0.75, -0.0, 0.0, 0.25, 1.0, 2.5, 3.0, 4194303.5, -4194303.5]).double()
    result = launch("round_down_to_integers", 1, 32, given, torch.zeros(len(given), 2, dtype=torch.int64), len(given))
    assert torch.equal(result, given.floor().long()[:, None].expand(-1, 2))


def test_floats_beyond_integers_become_the_nearest_integer():
    largest, smallest = 2**31 - 1, -(2**31)
    expected = {
        -1.5: (-2, -2, -1), -0.5: (-1, 0, 0), 0.5: (0, 0, 0), 2.5: (2, 2, 2), 2.75: (2, 3, 2),
        2147483520.0: (2147483520,) * 3, 2.0**31: (largest,) * 3, math.inf: (largest,) * 3,
        -(2.0**31): (smallest,) * 3, -3e9: (smallest,) * 3, -math.inf: (smallest,) * 3, math.nan: (0, 0, 0),
    }  # fmt: skip
    given = torch.tensor(list(expected))
    result = launch("integers_of_floats", 1, len(expected), given, zeros(len(expected), 3))
    assert list(map(tuple, result.tolist())) == list(expected.values())


def test_vector_types_have_the_sizes_and_alignments_of_cuda():
    layouts = {
        "char2": (2, 2), "char3": (3, 1), "char4": (4, 4), "uchar2": (2, 2), "uchar4": (4, 4),
        "short2": (4, 4), "short3": (6, 2), "short4": (8, 8), "ushort2": (4, 4), "ushort4": (8, 8),
        "int2": (8, 8), "int3": (12, 4), "int4": (16, 16), "uint2": (8, 8), "uint4": (16, 16),
        "float2": (8, 8), "float3": (12, 4), "float4": (16, 16),
        "longlong2": (16, 16), "longlong4": (32, 16), "ulonglong2": (16, 16),
        "double2": (16, 16), "double3": (24, 8), "double4": (32, 16), "half2": (4, 4), "bfloat162": (4, 4),
    }  # fmt: skip
    result = launch("vector_layouts", 1, 1, zeros(1), zeros(2 * len(layouts))).view(-1, 2)
    assert dict(zip(layouts, map(tuple, result.tolist()), strict=True)) == layouts


# Tensor cores.


def to_fragments(a: Tensor, b: Tensor) -> Tensor:
    """The registers of 32 lanes for A of 16 x 16 and B of 16 x 8, in a 16-bit dtype, by the tables of PTX.

    Returns:
        int32 of shape (32, 6): a0 to a3, b0, b1 of each lane.
    """
    registers = torch.zeros(32, 6, 2, dtype=a.dtype)
    for lane in range(32):
        group, in_group = lane // 4, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = in_group * 2 + i % 2 + (8 if i >= 4 else 0)
            registers[lane, i // 2, i % 2] = a[row, column]
        for i in range(4):
            row = in_group * 2 + i % 2 + (8 if i >= 2 else 0)
            registers[lane, 4 + i // 2, i % 2] = b[row, group]
    return registers.view(torch.int32)[..., 0]


def of_lanes(matrix: Tensor) -> Tensor:
    """The four numbers of each lane of a 16 x 8 matrix, or the way back with `from_lanes`."""
    lane, i = torch.arange(32)[:, None], torch.arange(4)
    return matrix[lane // 4 + 8 * (i >= 2), lane % 4 * 2 + i % 2]


def from_lanes(numbers: Tensor) -> Tensor:
    matrix = torch.full((16, 8), math.nan, dtype=numbers.dtype)
    lane, i = torch.arange(32)[:, None].expand(32, 4), torch.arange(4).expand(32, 4)
    matrix[lane // 4 + 8 * (i >= 2), lane % 4 * 2 + i % 2] = numbers
    return matrix


def products(a: Tensor, b: Tensor, d: Tensor) -> list[Tensor]:
    """d + a @ b by tensor cores, in plain order and in drawn ones; of W warps each, shape (W, 16, 8)."""
    name = {torch.float16: "mma_half", torch.bfloat16: "mma_bfloat16"}[a.dtype]
    registers = torch.stack([to_fragments(*pair) for pair in zip(a, b, strict=True)])
    numbers = torch.stack([of_lanes(matrix) for matrix in d])
    given = torch.cat([registers.flatten(), numbers.view(torch.int32).flatten()])
    results = in_every_order(lambda: launch(name, 1, 32 * len(a), given, torch.zeros(numbers.shape)))
    return [torch.stack([from_lanes(warp) for warp in result]) for result in results]


both_dtypes = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


def drawn(dtype: torch.dtype, warps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and d of each warp, spread over several powers of two."""
    generator = torch.Generator().manual_seed(seed)

    def spread(*size: int) -> Tensor:
        exponents = torch.randint(-6, 5, size, generator=generator)
        return torch.ldexp(torch.randn(size, generator=generator), exponents)

    return spread(warps, 16, 16).to(dtype), spread(warps, 16, 8).to(dtype), spread(warps, 16, 8)


@both_dtypes
def test_tensor_cores_multiply_small_integers_without_error(dtype):
    generator = torch.Generator().manual_seed(3)
    a = torch.randint(-16, 17, (8, 16, 16), generator=generator)
    b = torch.randint(-16, 17, (8, 16, 8), generator=generator)
    d = torch.randint(-(2**20), 2**20, (8, 16, 8), generator=generator)
    for result in products(a.to(dtype), b.to(dtype), d.float()):
        assert torch.equal(result.long(), d + a @ b)


@both_dtypes
def test_each_place_of_a_fragment_is_the_one_that_ptx_gives_it(dtype):
    """One 1 in A, and a number of its own in each place of B: a row of D shows a row of B."""
    b = torch.arange(1, 129.0).view(16, 8)
    for k in range(0, 16, 2):
        a = torch.zeros(32, 16, 16)  # the 1 in any row of two columns
        warp = torch.arange(32)
        a[warp, warp % 16, k + warp // 16] = 1
        expected = torch.zeros(32, 16, 8)
        expected[warp, warp % 16] = b[k + warp // 16]
        for result in products(a.to(dtype), b.expand(32, 16, 8).to(dtype), torch.zeros(32, 16, 8)):
            assert torch.equal(result, expected)


@both_dtypes
def test_tensor_cores_are_within_their_precision_of_the_exact_product(dtype):
    a, b, d = drawn(dtype, 16, seed=4)
    terms = torch.cat([a.double()[..., None] * b.double()[:, None], d.double()[:, :, None]], 2)  # W, 16, 17, 8
    exact, half = terms.sum(2), terms[:, :, [*range(8), 16]].sum(2)
    # Twice 9 terms lose less than 2^-24 of the largest, and each sum less than 2^-23 of itself.
    largest = torch.maximum(terms.abs().amax(2), half.abs())
    bound = 1.001 * (18 * 2.0**-24 * largest + 2.0**-23 * (half.abs() + exact.abs()))
    for result in products(a, b, d):
        assert ((result.double() - exact).abs() <= bound).all()
        assert (result.double() != exact).any()


def aligned_and_cut(terms: list[Fraction]) -> float:
    """The sum as the emulation defines it: terms cut 24 bits below the largest's leading bit, the sum to float32."""
    largest = max(map(abs, terms))
    if largest == 0:
        return 0.0
    unit = Fraction(2) ** (math.frexp(largest)[1] - 1 - 24)
    total = sum(math.trunc(term / unit) for term in terms) * unit
    if total == 0:
        return 0.0
    last = Fraction(2) ** max(math.frexp(total)[1] - 24, -149)
    return float(math.trunc(total / last) * last)


@both_dtypes
def test_tensor_cores_cut_what_is_24_bits_below_the_largest_term(dtype):
    a, b, d = drawn(dtype, 2, seed=5)
    result = products(a, b, d)[0]
    for warp, row, column in itertools.product(range(2), range(16), range(8)):
        pairs = zip(a[warp, row].tolist(), b[warp, :, column].tolist(), strict=True)
        terms = [Fraction(x) * Fraction(y) for x, y in pairs] + [Fraction(d[warp, row, column].item())]
        half = Fraction(aligned_and_cut([*terms[:8], terms[16]]))
        assert result[warp, row, column].item() == aligned_and_cut([*terms[8:16], half])


@both_dtypes
def test_infinities_and_nan_go_through_tensor_cores_as_through_ieee_sums(dtype):
    infinity, nan = math.inf, math.nan
    a, b, d = (x.clone() for x in drawn(dtype, 6, seed=6))
    a[0, 3, 5] = infinity
    b[0, 5, 2] = 0  # infinity times zero
    a[1, 3, 5], a[1, 3, 6] = infinity, -infinity
    b[1, 5:7] = b[1, 5:7].abs() + 1
    a[2, 11, 15] = nan
    b[3, 9, 7] = nan
    b[3, 2, 1] = -infinity
    d[4, 8, 3], d[4, 0, 0] = nan, infinity
    d[5, 2, 2], a[5, 2, 2], b[5, 2, 2] = infinity, -infinity, 1
    terms = torch.cat([a.double()[..., None] * b.double()[:, None], d.double()[:, :, None]], 2)
    expected = terms.sum(2)
    assert expected.isnan().sum() == 1 + 8 + 8 + 16 + 1 + 1 and expected.isinf().sum() == 7 + 16 + 1 + 7
    for result in products(a, b, d):
        special = ~expected.isfinite()
        torch.testing.assert_close(result[special].double(), expected[special], rtol=0, atol=0, equal_nan=True)
        assert result[~special].isfinite().all()


@both_dtypes
def test_tensor_cores_keep_subnormal_numbers(dtype):
    smallest = torch.ones(1, dtype=torch.int16).view(dtype)
    limits = torch.finfo(dtype)
    a, b = torch.zeros(16, 16, dtype=dtype), torch.zeros(16, 8, dtype=dtype)
    for i in range(16):
        a[i, i] = (i + 1) * smallest
    b[:, 0], b[:, 1], b[:, 2] = 1, limits.max, limits.smallest_normal
    d = torch.zeros(16, 8)
    d[:, 3] = 2.0**-149
    if dtype == torch.bfloat16:
        b[:, 2] = 2.0**-10  # the product is a subnormal float32, and rounds to zero below
    expected = d.double() + (a.double()[..., None] * b.double()).sum(1)
    assert 0 < smallest < limits.smallest_normal
    for result in products(a[None], b[None], d[None]):
        # Sums are exact but where they have bits below those of float32, which are cut.
        cut = torch.where(expected.abs() < 2.0**-149, 0, expected)
        assert torch.equal(result[0].double(), cut)


@pytest.mark.parametrize(("threads", "taking_part"), [(32, 16), (48, 48), (1, 1)])
def test_a_product_without_all_lanes_of_a_warp_is_an_error(threads, taking_part):
    message = f"a tensor core operation needs all 32 lanes, and {min(taking_part, threads) % 32 or 32} take part"
    for seed in (0, *SEEDS):
        with schedule(seed, kernels()), pytest.raises(RuntimeError, match=message):
            launch("mma_of_some_lanes", 1, threads, zeros(1), zeros(1), taking_part)


def rows_of_matrices(brought: Tensor, name: str) -> list[Tensor]:
    """What `name` loads when lane i brings row brought[i] of 32 rows of 0 to 255: four pairs for each lane."""
    rows = torch.arange(256, dtype=torch.int16).view(torch.int32)
    given = torch.cat([brought.int(), rows])
    results = in_every_order(lambda: launch(name, 1, 32, given, zeros(32, 4), shared=512))
    return [result.view(torch.int16).view(32, 4, 2) for result in results]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_each_lane_two_neighbours_of_each_matrix(transposed):
    brought = torch.randperm(32, generator=torch.Generator().manual_seed(7))
    brought[5] = brought[6]  # a row may be brought twice
    matrices = torch.arange(256, dtype=torch.int16).view(32, 8)[brought].view(4, 8, 8)
    expected = torch.zeros(32, 4, 2, dtype=torch.int16)
    for lane, matrix, half in itertools.product(range(32), range(4), range(2)):
        row, column = lane // 4, lane % 4 * 2 + half
        expected[lane, matrix, half] = matrices[matrix][(column, row) if transposed else (row, column)]
    for result in rows_of_matrices(brought, "ldmatrix_transposed" if transposed else "ldmatrix"):
        assert torch.equal(result, expected)


def test_ldmatrix_without_a_barrier_shows_in_a_drawn_order():
    brought = torch.arange(31, -1, -1)
    right = rows_of_matrices(brought, "ldmatrix")[0]
    assert not any(torch.equal(result, right) for result in rows_of_matrices(brought, "ldmatrix_without_syncwarp"))


def test_ldmatrix_needs_aligned_rows():
    with pytest.raises(RuntimeError, match="a row for ldmatrix is not aligned to 16 bytes"):
        launch("ldmatrix_of_unaligned_rows", 1, 32, zeros(1), zeros(1), shared=512)


# Wrong kernels.


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
