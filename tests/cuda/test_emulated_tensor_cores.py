"""Tensor cores under emulation: places of operands, precision, special numbers and `ldmatrix`."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.cuda.emulation.backend import schedule
from tests.cuda.emulation.kernels import SEEDS, in_every_order, kernels, launch, zeros

TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}


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


def products(a: Tensor, b: Tensor, d: Tensor, kernel: str = "mma") -> list[Tensor]:
    """d + a @ b by tensor cores, in plain order and in drawn ones; of W warps each, shape (W, 16, 8)."""
    name = kernel + {torch.float16: "_half", torch.bfloat16: "_bfloat16"}[a.dtype]
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


@both_dtypes
def test_a_product_of_depth_8_is_one_of_depth_16_whose_second_half_is_zero(dtype):
    a, b, d = drawn(dtype, 8, seed=8)
    a[:, :, 8:], b[:, 8:] = 0, 0
    a[0, 3, 5], a[1, 2, 2], d[1, 2, 1] = math.inf, math.nan, -math.inf
    expected = products(a, b, d)[0]
    a[:, :, 8:], b[:, 8:] = math.nan, math.nan  # not read
    for result in products(a, b, d, "mma_depth_8"):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


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
