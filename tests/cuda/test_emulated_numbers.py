"""Numbers under emulation: roundings, conversions and integer operations, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.cuda.emulation.kernels import launch, same_numbers, zeros

TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}


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
