"""`linear_sum_assignment` takes lists, sizes, offsets and any dtype, and reports what SciPy raises."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from dino_kernels import linear_sum_assignment
from dino_kernels.ops.linear_sum_assignment import Assignment, prepare
from dino_kernels.testing import AssignmentCase, assert_same_bits, assignment_costs
from tests.ops.assignment import SLOW, TIES, assert_same, scipy_columns, solve, total


def scipy_error(matrix: Tensor) -> str:
    with pytest.raises(ValueError, match="matrix") as caught:
        scipy.optimize.linear_sum_assignment(matrix.numpy())
    return str(caught.value)


INVALID = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
INFEASIBLE = torch.tensor([[1.0, float("inf")], [0.0, float("inf")]])


@pytest.mark.parametrize("matrix", [INVALID, INFEASIBLE], ids=["invalid", "infeasible"])
def test_the_check_has_the_messages_of_scipy(matching_backend, device, matrix):
    fine = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    message = scipy_error(matrix)
    cost = torch.stack([fine, matrix, fine]).to(device)
    for given in (cost, list(cost), cost[1]):
        with pytest.raises(ValueError, match=message):
            linear_sum_assignment(given, check="raise", backend=matching_backend)
    with pytest.raises(ValueError, match=r"linear_sum_assignment.*in 1 of 3 problems"):
        linear_sum_assignment(cost, check="raise", backend=matching_backend)
    with pytest.warns(RuntimeWarning, match=message):
        warned = linear_sum_assignment(cost, check="warn", backend=matching_backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = linear_sum_assignment(cost, backend=matching_backend)
        linear_sum_assignment(cost[::2], check="raise", backend=matching_backend)
        linear_sum_assignment(cost[::2], check="warn", backend=matching_backend)
    assert torch.equal(warned, silent)


def test_a_warning_points_to_the_caller():
    with pytest.warns(RuntimeWarning, match="infeasible") as caught:
        linear_sum_assignment(INFEASIBLE, check="warn", backend="reference")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_one_matrix_gives_pairs_as_scipy_does(matching_backend, device, shape, maximize):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = linear_sum_assignment(cost.to(device), maximize=maximize, backend=matching_backend)
    expected = scipy.optimize.linear_sum_assignment(cost.double().numpy(), maximize)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == torch.int64
        assert got.tolist() == wanted.tolist()


LISTS = {
    "one_width": [(3, 8), (0, 8), (5, 8), (9, 8)],
    "one_height": [(8, 3), (8, 0), (8, 5), (8, 9)],
    "one_height_with_square": [(8, 3), (8, 8), (8, 9)],
    "one_size": [(4, 6), (4, 6)],
    "all_different": [(3, 8), (7, 2), (0, 4), (5, 5), (2, 0)],
    "one": [(4, 7)],
    "none": [],
}


@pytest.mark.parametrize("kind", ["random", "integers"])
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("shapes", LISTS)
def test_a_list_of_matrices_gives_what_each_alone_gives(matching_backend, device, shapes, ties, kind):
    matrices = [
        assignment_costs(AssignmentCase("list", 1, *shape, kind=kind), device=device, seed=seed)[0]
        for seed, shape in enumerate(LISTS[shapes])
    ]
    found = linear_sum_assignment(matrices, ties=ties, backend=matching_backend)
    assert len(found) == len(matrices)
    for pairs, matrix in zip(found, matrices, strict=True):
        alone = linear_sum_assignment(matrix, ties=ties, backend="reference")
        expected = scipy.optimize.linear_sum_assignment(matrix.double().cpu().numpy())
        for got, wanted, scipys in zip(pairs, alone, expected, strict=True):
            assert torch.equal(got, wanted)
            assert got.tolist() == scipys.tolist() or (kind == "integers" and ties == "lowest")


def test_a_list_of_several_dtypes_is_promoted(matching_backend, device):
    matrices = [torch.eye(3).half(), torch.eye(3, 4, dtype=torch.float64) * (1 + 1e-12), torch.eye(2, 5).long()]
    for group in (matrices, [matrices[0], torch.eye(3, dtype=torch.int32)]):
        found = linear_sum_assignment([matrix.to(device) for matrix in group], ties="scipy", backend=matching_backend)
        for (rows, columns), matrix in zip(found, group, strict=True):
            expected = scipy.optimize.linear_sum_assignment(matrix.double().numpy())
            assert (rows.tolist(), columns.tolist()) == (expected[0].tolist(), expected[1].tolist())


SIZES = [[5, 9], [0, 4], [5, 0], [3, 2], [2, 9], [4, 4]]


def poisoned(sizes: list[list[int]], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Costs of which only `sizes` are in use: with 0 elsewhere, and with what would be noticed."""
    generator = torch.Generator().manual_seed(3)
    cost = torch.randn(len(sizes), rows, columns, generator=generator)
    used = torch.zeros_like(cost, dtype=torch.bool)
    for problem, (height, width) in enumerate(sizes):
        used[problem, :height, :width] = True
    poison = torch.tensor([torch.nan, -torch.inf, -1e30])[torch.randint(3, cost.shape, generator=generator)]
    return cost.masked_fill(~used, 0), torch.where(used, cost, poison)


@pytest.mark.parametrize("form", ["list", "tensor", "int32", "strided"])
@pytest.mark.parametrize("ties", TIES)
def test_what_lies_beyond_the_sizes_changes_nothing(matching_backend, device, form, ties):
    clean, poison = poisoned(SIZES, 5, 9)
    sizes: Any = {
        "list": SIZES,
        "tensor": torch.tensor(SIZES, device=device),
        "int32": torch.tensor(SIZES, dtype=torch.int32),
        "strided": torch.tensor(SIZES).t().contiguous().t(),
    }[form]
    result = solve(poison.to(device), matching_backend, sizes, ties=ties)
    assert_same(result, solve(clean.to(device), matching_backend, sizes, ties=ties))
    assert (result.status == 0).all()
    for problem, (height, width) in enumerate(SIZES):
        expected = scipy_columns(clean[problem, :height, :width])
        assert torch.equal(result.columns[problem, :height].cpu(), expected)
        assert (result.columns[problem, height:] == -1).all()
        assert (result.row_duals[problem, height:] == 0).all()
        assert (result.column_duals[problem, width:] == 0).all()


@pytest.mark.parametrize("form", ["list", "tensor"])
def test_sizes_of_columns_alone_keep_all_rows(matching_backend, device, form):
    widths = [9, 0, 3, 5, 1]
    clean, poison = poisoned([[5, width] for width in widths], 5, 9)
    sizes: Any = widths if form == "list" else torch.tensor(widths, device=device)
    result = solve(poison.to(device), matching_backend, sizes)
    for problem, width in enumerate(widths):
        assert torch.equal(result.columns[problem].cpu(), scipy_columns(clean[problem, :, :width]))


def test_packed_problems_give_what_each_alone_gives(matching_backend, device):
    counts = (4, 0, 7, 1, 12)
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    cost = torch.randn(3, sum(counts), 9, generator=torch.Generator().manual_seed(1))
    result = solve(cost.to(device), matching_backend, offsets=offsets.to(device))
    assert result.columns.shape == (3, 24) and result.status.shape == result.objective.shape == (3, 5)
    assert result.column_duals.shape == (3, 5, 9)
    ranges = itertools.pairwise(offsets.tolist())
    for group, (image, (start, end)) in itertools.product(range(3), enumerate(ranges)):
        some = slice(start, end)
        alone = solve(cost[group, some][None].to(device), matching_backend)
        of_packed = [result.columns[group, some], result.status[group, image], result.objective[group, image]]
        of_packed += [result.row_duals[group, some], result.column_duals[group, image]]
        assert_same_bits(of_packed, [tensor[0] for tensor in alone], Assignment._fields)


@pytest.mark.parametrize("used", [0, 5, 14])
def test_rows_of_unused_capacity_get_nothing(matching_backend, device, used):
    """Also if they hold NaN."""
    cost = torch.randn(2, 20, 9, generator=torch.Generator().manual_seed(1))
    cost[:, used:] = torch.tensor([torch.nan, -torch.inf, 0.0])[:, None].expand(3, 9).repeat(7, 1)[: 20 - used]
    offsets = torch.tensor([0, used // 2, used])
    result = solve(cost.to(device), matching_backend, offsets=offsets.to(device))
    exact = solve(cost[:, :used].to(device), matching_backend, offsets=offsets.to(device))
    assert (result.columns[:, used:] == -1).all() and (result.row_duals[:, used:] == 0).all()
    trimmed = result._replace(columns=result.columns[:, :used], row_duals=result.row_duals[:, :used])
    assert_same(trimmed, exact)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_packed_costs_may_lack_the_dimension_of_groups(matching_backend, device, dimensions):
    cost = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(device)
    offsets = torch.tensor([0, 2, 6], device=device)
    columns = linear_sum_assignment(cost if dimensions == 2 else cost[None], offsets=offsets, backend=matching_backend)
    assert columns.shape == (1, 6)
    assert torch.equal(columns[0, 2:].cpu(), scipy_columns(cost[2:]))


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool],
)
def test_costs_of_any_dtype_are_exact(matching_backend, device, dtype):
    cost = torch.randint(0, 100, (3, 6, 9), generator=torch.Generator().manual_seed(4))
    cost = (cost > 60) if dtype == torch.bool else cost.to(dtype)
    result = solve(cost.to(device), matching_backend, ties="scipy")
    for matrix, columns, objective in zip(cost, result.columns.cpu(), result.objective, strict=True):
        assert torch.equal(columns, scipy_columns(matrix))
        assert float(objective) == total(matrix, columns)


def test_large_integers_are_exact(matching_backend, device):
    """float32 would round them to equal numbers."""
    cost = 2**50 + torch.randint(0, 50, (2, 5, 7), generator=torch.Generator().manual_seed(4))
    columns = linear_sum_assignment(cost.to(device), ties="scipy", backend=matching_backend).cpu()
    assert torch.equal(columns, torch.stack([scipy_columns(matrix) for matrix in cost]))


def test_float64_costs_are_not_rounded_to_float32(matching_backend, device):
    cost = 1 + 1e-12 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    columns = linear_sum_assignment(cost.to(device), backend=matching_backend).cpu()
    assert torch.equal(columns, torch.stack([scipy_columns(matrix) for matrix in cost]))
    assert (linear_sum_assignment(cost.float().to(device), backend=matching_backend).cpu() == torch.arange(5)).all()


def test_one_crowded_image_among_empty_ones(matching_backend, device):
    counts = (0, 0, 31, 0) if matching_backend not in SLOW else (0, 0, 7, 0)
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    cost = assignment_costs(AssignmentCase("crowded", 2, sum(counts), 40, "collapsed"))
    result = solve(cost.to(device), matching_backend, offsets=offsets.to(device))
    assert torch.equal(result.columns.cpu(), torch.stack([scipy_columns(matrix) for matrix in cost]))
    assert (result.objective[:, [0, 1, 3]] == 0).all() and (result.column_duals[:, [0, 1, 3]] == 0).all()


NESTED = [[4, 1, 3], [2, 0, 5], [3, 2, 2]]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "cost",
    [
        NESTED,
        tuple(map(tuple, NESTED)),
        np.array(NESTED),
        np.array(NESTED, np.float32),
        np.array(NESTED, np.float16),
        np.array(NESTED, np.uint64),
        np.array(NESTED, np.int8),
        np.array(NESTED, np.longdouble),
        np.array(NESTED, ">f8"),
        np.array(NESTED, ">i2"),
        np.array(NESTED)[::-1, ::-1],
        np.array(NESTED).T,
        np.broadcast_to(np.array(NESTED[0]), (3, 3)),
        [np.array(row) for row in NESTED],
        np.asmatrix(NESTED),
        [[0.25, 1e300], [True, 3]],
        np.zeros((0, 4)),
        [[]],
    ],
    ids=lambda cost: f"{type(cost).__name__}-{getattr(cost, 'dtype', '')}",
)
def test_arrays_and_nested_lists_give_the_pairs_of_scipy(cpu_kernel, cost, maximize):
    expected = scipy.optimize.linear_sum_assignment(np.asarray(cost, np.float64), maximize)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (
            linear_sum_assignment(cost, maximize, ties="scipy"),
            linear_sum_assignment(cost, maximize=maximize, ties="scipy"),
        ):
            assert [got.dtype for got in found] == [torch.int64] * 2
            assert [got.tolist() for got in found] == [wanted.tolist() for wanted in expected]


def test_an_array_of_matrices_is_a_batch_and_a_list_of_arrays_is_a_list(cpu_kernel):
    batch = np.random.default_rng(0).random((3, 4, 5))
    expected = linear_sum_assignment(torch.from_numpy(batch))
    for given in (batch, batch.tolist()):
        assert torch.equal(linear_sum_assignment(given), expected)
        assert torch.equal(linear_sum_assignment(given, np.array([5, 5, 5])), expected)
    listed: Any = [batch[0], torch.from_numpy(batch[1, :2]), batch[2, :, :3]]
    for (rows, columns), matrix in zip(linear_sum_assignment(listed), listed, strict=True):
        wanted = scipy.optimize.linear_sum_assignment(np.asarray(matrix))
        assert (rows.tolist(), columns.tolist()) == (wanted[0].tolist(), wanted[1].tolist())
    for (_, columns), matrix in zip(linear_sum_assignment(listed, True), listed, strict=True):
        assert columns.tolist() == scipy.optimize.linear_sum_assignment(np.asarray(matrix), True)[1].tolist()


def test_the_second_argument_is_maximize_or_sizes(matching_backend, device):
    cost = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).to(device)
    by_name = linear_sum_assignment(cost, maximize=True, backend=matching_backend)
    assert torch.equal(linear_sum_assignment(cost, True, backend=matching_backend), by_name)
    numpys: Any = np.True_
    assert torch.equal(linear_sum_assignment(cost, numpys, backend=matching_backend), by_name)
    sizes = linear_sum_assignment(cost, sizes=[6, 5, 4], backend=matching_backend)
    assert torch.equal(linear_sum_assignment(cost, [6, 5, 4], backend=matching_backend), sizes)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("matrix",), {}, TypeError, "cost must be a tensor, an array, .* got str"),
        ((None,), {}, TypeError, "cost must be a tensor, .* got NoneType"),
        ((3.0,), {}, TypeError, "cost must be a tensor, .* got float"),
        (({1: [2]},), {}, TypeError, "cost must be a tensor, .* got dict"),
        (([["a", "b"]],), {}, TypeError, "cost must be real numbers, got an array of <U1"),
        (([[1j]],), {}, TypeError, "cost must be real numbers, got an array of complex128"),
        (([[None, 1.0]],), {}, TypeError, "cost must be real numbers, got an array of object"),
        (([[1, 2], [3]],), {}, ValueError, "cost has rows of different lengths"),
        (([1.0, 2.0],), {}, ValueError, r"cost must be .* got \[2\]"),
        ((np.zeros(()),), {}, ValueError, r"cost must be .* got \[\]"),
        (([torch.zeros(2, 2), "b"],), {}, TypeError, "cost must be real numbers"),
        ((torch.zeros(2, 2, 3), 1), {}, TypeError, "sizes must be .* got 1. The second argument is maximize if"),
        ((torch.zeros(2, 2, 3), "yes"), {}, TypeError, "sizes must be .* got 'yes'"),
        ((torch.zeros(2, 2, 3), [[1], [1, 2]]), {}, TypeError, r"sizes must be .* got \[\[1\], \[1, 2\]\]"),
        ((torch.zeros(2, 2, 3), [1.5, 2.5]), {}, ValueError, r"sizes must be integers .* got torch.float32 \[2, 1\]"),
        ((torch.zeros(2, 2, 3), [True, False]), {}, ValueError, r"sizes must be integers .* got torch.bool"),
        ((torch.zeros(2, 3),), {"maximize": "no"}, TypeError, "maximize must be True or False, got 'no'"),
        ((torch.zeros(2, 3),), {"maximize": None}, TypeError, "maximize must be True or False, got None"),
        ((torch.zeros(2, 3),), {"offsets": [0, 2]}, TypeError, r"offsets must be an int64 tensor \[B \+ 1\], got list"),
        ((torch.zeros(2, 3),), {"backend": ["cpu"]}, ValueError, r"backend must be one of .* got \['cpu'\]"),
        (
            (torch.zeros(2, 3),),
            {"ties": ["scipy"]},
            ValueError,
            r"ties must be 'lowest' or 'scipy', got \['scipy'\]",
        ),
    ],
)
def test_what_cannot_be_a_cost_or_an_option_is_named(arguments, options, error, message):
    with pytest.raises(error, match=f"^linear_sum_assignment: {message}"):
        linear_sum_assignment(*arguments, **options)


def test_costs_are_not_copied_on_their_way():
    cost = torch.zeros(2, 3, 4)
    for given in (cost, cost.transpose(1, 2), cost[:, ::2]):
        prepared = prepare(given)
        assert prepared.cost.data_ptr() == given.data_ptr() and prepared.cost.stride() == given.stride()
    array = np.zeros((3, 4), np.float32)
    assert prepare(array).cost.data_ptr() == array.ctypes.data
