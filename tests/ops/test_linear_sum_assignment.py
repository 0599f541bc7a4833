"""Assignments are optimal, SciPy's where those are unique, and the same to the bit on every backend."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from dino_kernels import linear_sum_assignment, matching_cost
from dino_kernels.ops._matching import INCOMPLETE, INVALID_COST
from dino_kernels.ops.linear_sum_assignment import Assignment, prepare
from dino_kernels.testing import (
    ASSIGNMENT_CASES,
    MATCHING_CASES,
    AssignmentCase,
    MatchingCase,
    assert_optimal,
    assert_same_bits,
    assignment_costs,
    matching_inputs,
)

OPS = ("linear_sum_assignment",)
SLOW = ("emulated", "interpreted")
FINITE = [case for case in ASSIGNMENT_CASES if case.finite]
UNIQUE = [case for case in FINITE if not case.ties and case.kind != "wide" and case.problems]
TIED = [case for case in FINITE if case.ties]
REALISTIC = [case for case in MATCHING_CASES if case.sets]
TIES = ("lowest", "scipy")


def solve(cost: Tensor, backend: str, *rest: Any, **options: Any) -> Assignment:
    return linear_sum_assignment(cost, *rest, full_output=True, backend=backend, **options)


def assert_same(result: Assignment, expected: Assignment) -> None:
    assert_same_bits(result, expected, Assignment._fields)


def sized(case: Any, backend: str) -> Any:
    return case.small() if backend in SLOW else case


def scipy_columns(matrix: Tensor, maximize: bool = False) -> Tensor:
    """The column of each row, -1 where none, by SciPy in float64."""
    rows, columns = scipy.optimize.linear_sum_assignment(matrix.double().cpu().numpy(), maximize)
    result = torch.full((matrix.shape[0],), -1)
    result[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return result


def total(matrix: Tensor, columns: Tensor) -> float:
    rows = (columns >= 0).nonzero()[:, 0]
    return float(matrix.double()[rows, columns[rows]].sum())


def assert_as_good_as_scipy(matrix: Tensor, columns: Tensor, objective: Tensor, maximize: bool = False) -> None:
    expected = total(matrix, scipy_columns(matrix, maximize))
    scale = float(matrix.double().abs().max()) if matrix.numel() else 0.0
    assert abs(float(objective) - expected) <= 1e-12 * scale * max(1, len(matrix))
    assert abs(total(matrix, columns) - expected) <= 1e-12 * scale * max(1, len(matrix))


def largest_matching(allowed: np.ndarray) -> int:
    """The number of pairs of a largest matching (Kuhn's algorithm)."""
    row_of = [-1] * allowed.shape[1]

    def add(row: int, seen: set[int]) -> bool:
        for column in np.flatnonzero(allowed[row]).tolist():
            if column not in seen:
                seen.add(column)
                if row_of[column] < 0 or add(row_of[column], seen):
                    row_of[column] = row
                    return True
        return False

    return sum(add(row, set()) for row in range(allowed.shape[0]))


def realistic_cost(case: MatchingCase, device: str) -> tuple[Tensor, Tensor]:
    """Packed costs [G, N, Q] of a detector's matching, and their offsets."""
    inputs = matching_inputs(case)
    return matching_cost(**inputs, backend="reference").to(device), inputs["targets"].offsets.to(device)


def problems_of(cost: Tensor, offsets: Tensor) -> Iterator[tuple[int, int, slice]]:
    for group, (image, (start, end)) in itertools.product(
        range(len(cost)), enumerate(itertools.pairwise(offsets.tolist()))
    ):
        yield group, image, slice(start, end)


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("case", FINITE, ids=lambda case: case.id)
@pytest.mark.parametrize("ties", TIES)
def test_the_objective_is_scipys(matching_backend, device, case, ties, maximize):
    cost = assignment_costs(sized(case, matching_backend), device=device)
    result = solve(cost, matching_backend, ties=ties, maximize=maximize)
    assert (result.status == 0).all()
    for matrix, columns, objective in zip(cost.cpu(), result.columns.cpu(), result.objective, strict=True):
        assert_as_good_as_scipy(matrix, columns, objective, maximize)
        assert (columns >= 0).sum() == min(matrix.shape)


@pytest.mark.parametrize("case", REALISTIC, ids=lambda case: case.id)
def test_the_objective_of_a_detectors_matching_is_scipys(matching_backend, device, case):
    cost, offsets = realistic_cost(sized(case, matching_backend), device)
    result = solve(cost, matching_backend, offsets=offsets)
    for group, image, some in problems_of(cost, offsets):
        columns = result.columns[group, some].cpu()
        assert_as_good_as_scipy(cost[group, some].cpu(), columns, result.objective[group, image])
        if case.stage != "repeated":
            assert torch.equal(columns, scipy_columns(cost[group, some]))


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("case", UNIQUE, ids=lambda case: case.id)
@pytest.mark.parametrize("ties", TIES)
def test_indices_without_ties_are_scipys(matching_backend, device, case, ties, maximize):
    cost = assignment_costs(sized(case, matching_backend), device=device)
    columns = linear_sum_assignment(cost, ties=ties, maximize=maximize, backend=matching_backend).cpu()
    assert torch.equal(columns, torch.stack([scipy_columns(matrix, maximize) for matrix in cost]))


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("case", TIED, ids=lambda case: case.id)
def test_indices_with_ties_are_scipys_where_asked_for(matching_backend, device, case, maximize):
    for seed in range(3):
        cost = assignment_costs(sized(case, matching_backend), device=device, seed=seed)
        columns = linear_sum_assignment(cost, ties="scipy", maximize=maximize, backend=matching_backend)
        assert torch.equal(columns.cpu(), torch.stack([scipy_columns(matrix, maximize) for matrix in cost]))


def test_scipys_choice_among_equals_is_another_one():
    """What the test above stands on."""
    cost = assignment_costs(AssignmentCase("integers", 20, 12, 20, "integers"))
    chosen = [linear_sum_assignment(cost, ties=ties, backend="reference") for ties in TIES]
    assert not torch.equal(*chosen)


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", ASSIGNMENT_CASES, ids=lambda case: case.id)
def test_every_backend_returns_the_same_bits(matching_kernel, device, deterministic, case, ties, maximize):
    """Deterministic mode fills new memory, so that what a kernel leaves out shows."""
    for seed, dtype in ((0, torch.float32), (1, torch.float64)):
        cost = assignment_costs(sized(case, matching_kernel), dtype, device, seed)
        result = solve(cost, matching_kernel, ties=ties, maximize=maximize)
        assert_same(result, solve(cost, "reference", ties=ties, maximize=maximize))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", REALISTIC, ids=lambda case: case.id)
def test_every_backend_returns_the_same_bits_of_packed_problems(matching_kernel, device, deterministic, case, ties):
    cost, offsets = realistic_cost(sized(case, matching_kernel), device)
    result = solve(cost, matching_kernel, offsets=offsets, ties=ties)
    assert_same(result, solve(cost, "reference", offsets=offsets, ties=ties))


@pytest.mark.parametrize(("rows", "columns"), [(300, 900), (900, 120), (200, 200)])
@pytest.mark.parametrize("kind", ["random", "collapsed", "integers", "hostile"])
def test_large_problems_have_the_same_bits(matching_kernel, device, rows, columns, kind):
    case = AssignmentCase("large", 1, rows, columns, kind)
    if matching_kernel in SLOW:  # beyond one block's threads and shared memory
        rows, columns = (40, 150) if rows < columns else (150, 40) if rows > columns else (45, 45)
        case = AssignmentCase("large", 1, rows, columns, kind)
    if matching_kernel == "interpreted":
        case = case.small()
    cost = assignment_costs(case, device=device)
    assert_same(solve(cost, matching_kernel), solve(cost, "reference"))


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (4, 9), (6, 6)])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_equal_costs_give_the_lowest_columns_in_order(matching_backend, device, rows, columns, maximize):
    for value in (0.0, -1.5, 3.0):
        found = linear_sum_assignment(
            torch.full((2, rows, columns), value, device=device), maximize=maximize, backend=matching_backend
        )
        assert found.tolist() == [list(range(rows))] * 2


def test_rows_of_equal_costs_among_others_take_the_lowest_columns(matching_backend, device):
    cost = torch.tensor([[[5.0, 1, 1, 7], [1, 5, 5, 1], [5, 5, 1, 1]]], device=device)
    assert linear_sum_assignment(cost, backend=matching_backend).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", [c for c in ASSIGNMENT_CASES if c.kind != "hostile"], ids=lambda case: case.id)
def test_duals_certify_the_optimum(matching_backend, device, case, ties, maximize):
    cost = assignment_costs(sized(case, matching_backend), device=device)
    if maximize:
        cost = -cost  # so that infinities forbid here too
    assert_optimal(cost, solve(cost, matching_backend, ties=ties, maximize=maximize), maximize, ties)


@pytest.mark.parametrize("wrong", ["columns", "row_duals", "column_duals", "objective"])
def test_a_wrong_assignment_has_no_certificate(wrong):
    """What the test above stands on."""
    cost = assignment_costs(AssignmentCase("random", 1, 6, 9))
    result = solve(cost, "reference")
    changed = {
        "columns": result.columns.flip(1),
        "row_duals": result.row_duals + 1e-6,
        "column_duals": result.column_duals - 1e-6,
        "objective": result.objective + 1e-6,
    }[wrong]
    assert_optimal(cost, result)
    with pytest.raises(AssertionError, match="problem 0"):
        assert_optimal(cost, result._replace(**{wrong: changed}))


@pytest.mark.parametrize("ties", TIES)
def test_tiny_problems_are_solved_as_by_trying_everything(matching_backend, device, ties):
    generator = torch.Generator().manual_seed(7)
    sizes, problems = ((2, 4), 4) if matching_backend == "interpreted" else (range(1, 5), 9)
    for rows, columns in itertools.product(sizes, sizes):
        cost = torch.randint(-3, 4, (problems, rows, columns), generator=generator).float()
        cost[1:] = cost[1:].masked_fill(torch.rand(cost[1:].shape, generator=generator) < 0.2, torch.inf)
        result = solve(cost.to(device), matching_backend, ties=ties)
        for number, matrix in enumerate(cost):
            wide = matrix if rows <= columns else matrix.t()
            sums = [
                float(wide[torch.arange(len(wide)), list(columns)].sum())
                for columns in itertools.permutations(range(wide.shape[1]), len(wide))
            ]
            if min(sums) < torch.inf:
                assert (float(result.objective[number]), int(result.status[number])) == (min(sums), 0)
                assert total(matrix, result.columns[number].cpu()) == min(sums)
            else:
                assert result.status[number] == INCOMPLETE
                assert (result.columns[number] >= 0).sum() == largest_matching(matrix.isfinite().numpy())


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", [c for c in ASSIGNMENT_CASES if not c.finite], ids=lambda case: case.id)
def test_where_not_all_can_have_a_partner_as_many_as_possible_have_one(matching_backend, device, case, ties):
    incomplete = 0
    for seed in range(3):
        cost = assignment_costs(sized(case, matching_backend), device=device, seed=seed)
        result = solve(cost, matching_backend, ties=ties)
        for matrix, columns, status in zip(cost.cpu(), result.columns.cpu(), result.status.tolist(), strict=True):
            used = columns[columns >= 0]
            allowed = matrix.isfinite()
            assert len(used) == len(used.unique()) == largest_matching(allowed.numpy())
            assert allowed[columns >= 0, used].all()
            assert bool(status & INCOMPLETE) == (len(used) < min(matrix.shape))
            assert bool(status & INVALID_COST) == bool((matrix.isnan() | (matrix == -torch.inf)).any())
            assert not status & ~(INCOMPLETE | INVALID_COST)
            incomplete += len(used) < min(matrix.shape)
    assert incomplete or case.kind == "forbidden"


def test_rows_and_columns_without_an_allowed_pair_change_nothing_for_the_others(matching_backend, device):
    cost = assignment_costs(AssignmentCase("random", 1, 6, 9))[0]
    expected = scipy_columns(cost)
    rows, columns = torch.tensor([0, 2, 3, 5, 6, 8]), torch.tensor([1, 2, 4, 5, 6, 7, 9, 10, 11])
    larger = torch.full((9, 12), torch.inf)
    larger[rows[:, None], columns] = cost
    result = solve(larger[None].to(device), matching_backend)
    wanted = torch.full((9,), -1)
    wanted[rows] = columns[expected]
    assert torch.equal(result.columns[0].cpu(), wanted)
    assert result.status.tolist() == [INCOMPLETE]
    assert result.objective.item() == pytest.approx(total(cost, expected), abs=1e-12)


@pytest.mark.parametrize(
    ("maximize", "value", "status"),
    [
        (False, float("inf"), 0),
        (False, float("-inf"), INVALID_COST),
        (False, float("nan"), INVALID_COST),
        (True, float("-inf"), 0),
        (True, float("inf"), INVALID_COST),
        (True, float("nan"), INVALID_COST),
    ],
)
def test_what_is_not_finite_is_never_matched_and_told_of(matching_backend, device, maximize, value, status):
    """The best column of each row, were it a number."""
    cost = assignment_costs(AssignmentCase("random", 3, 4, 8))
    cost[1, torch.arange(4), torch.arange(4)] = value
    result = solve(cost.to(device), matching_backend, maximize=maximize)
    assert result.status.tolist() == [0, status, 0]
    assert (result.columns[1].cpu() != torch.arange(4)).all()
    without = cost[1].masked_fill(~cost[1].isfinite(), -torch.inf if maximize else torch.inf)
    assert torch.equal(result.columns[1].cpu(), scipy_columns(without, maximize))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_a_matrix_without_an_allowed_pair_has_no_pairs(matching_backend, device, value):
    result = solve(torch.full((2, 3, 5), value, device=device), matching_backend)
    assert (result.columns == -1).all()
    assert result.status.tolist() == [INCOMPLETE | (0 if value == float("inf") else INVALID_COST)] * 2
    assert all((tensor == 0).all() for tensor in result[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("ties", TIES)
def test_any_bits_are_survived(matching_kernel, device, dtype, ties):
    """Raw bit patterns: every exponent, denormals, NaN payloads. In float32 no sum overflows, so bits are the same."""
    generator = torch.Generator().manual_seed(5)
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    low, high = torch.iinfo(integer).min, torch.iinfo(integer).max
    for rows, columns in ((5, 9), (7, 7), (9, 4)):
        bits = torch.randint(low, high, (4, rows, columns), generator=generator, dtype=integer)
        cost = bits.view(dtype).to(device)
        result = solve(cost, matching_kernel, ties=ties)
        if dtype == torch.float32:
            assert_same(result, solve(cost, "reference", ties=ties))
        for columns_of, matrix in zip(result.columns.cpu(), cost.cpu(), strict=True):
            used = columns_of[columns_of >= 0]
            assert len(used) == len(used.unique())
            assert matrix[columns_of >= 0, used].isfinite().all()


def scipy_error(matrix: Tensor) -> str:
    with pytest.raises(ValueError, match="matrix") as caught:
        scipy.optimize.linear_sum_assignment(matrix.numpy())
    return str(caught.value)


INVALID = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
INFEASIBLE = torch.tensor([[1.0, float("inf")], [0.0, float("inf")]])


@pytest.mark.parametrize("matrix", [INVALID, INFEASIBLE], ids=["invalid", "infeasible"])
def test_the_check_speaks_as_scipy_does(matching_backend, device, matrix):
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
    for group, image, some in problems_of(cost, offsets):
        alone = solve(cost[group, some][None].to(device), matching_backend)
        of_packed = [result.columns[group, some], result.status[group, image], result.objective[group, image]]
        of_packed += [result.row_duals[group, some], result.column_duals[group, image]]
        assert_same_bits(of_packed, [tensor[0] for tensor in alone], Assignment._fields)


@pytest.mark.parametrize("used", [0, 5, 14])
def test_rows_of_unused_capacity_get_nothing(matching_backend, device, used):
    """Whatever stands there."""
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


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda cost: cost.transpose(1, 2).contiguous().transpose(1, 2),
    "problems_last": lambda cost: cost.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "inside_a_wider_tensor": lambda cost: torch.cat([cost.new_full((1, 1, 1), torch.nan).expand_as(cost), cost], 2)[
        :, :, cost.shape[2] :
    ],
    "every_second_element": lambda cost: torch.stack([cost, cost.new_full((), torch.nan).expand_as(cost)], -1)[..., 0],
    "misaligned": lambda cost: cost.new_empty(cost.numel() + 1)[1:].view(cost.shape).copy_(cost),
}


@pytest.mark.parametrize("shape", [(3, 5, 11), (3, 11, 5), (2, 6, 6)])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("ties", TIES)
def test_strides_change_nothing(matching_kernel, device, view, shape, ties):
    cost = assignment_costs(AssignmentCase("strides", *shape, kind="hostile"), device=device)
    viewed = VIEWS[view](cost)
    assert viewed.stride() != cost.stride() or view == "misaligned"
    for dtype in (torch.float32, torch.float64):
        result = solve(VIEWS[view](cost.to(dtype)), matching_kernel, ties=ties)
        assert_same(result, solve(cost, matching_kernel, ties=ties))


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_expanded_costs_are_read_as_they_are(matching_kernel, device, dimension):
    cost = assignment_costs(AssignmentCase("expanded", 3, 5, 9, "integers"), device=device)
    expanded = cost.narrow(dimension, 0, 1).expand_as(cost)
    assert 0 in expanded.stride()
    assert_same(solve(expanded, matching_kernel), solve(expanded.clone(), matching_kernel))


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
    """float32 could not tell them apart."""
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


def test_another_number_of_targets_with_every_step(matching_kernel, device):
    """What one size leaves behind must not reach the next."""
    for targets in (3, 9, 0, 1, 12, 2, 7):
        cost = assignment_costs(AssignmentCase("step", 2, targets, 10, "integers"), device=device, seed=targets)
        assert_same(solve(cost, matching_kernel), solve(cost, "reference"))


def test_a_result_does_not_depend_on_the_rest_of_its_batch(matching_kernel, device):
    cost = assignment_costs(AssignmentCase("batch", 7, 6, 10, "hostile"), device=device)
    together = solve(cost, matching_kernel)
    for problem in range(7):
        alone = solve(cost[problem : problem + 1], matching_kernel)
        assert_same(alone, Assignment(*(tensor[problem : problem + 1] for tensor in together)))


@pytest.mark.parametrize("ties", TIES)
def test_repeated_calls_give_the_same_bits(matching_kernel, device, ties):
    cost = assignment_costs(AssignmentCase("again", 4, 6, 12, "integers"), device=device)
    first = solve(cost, matching_kernel, ties=ties)
    for _ in range(3):
        assert_same(solve(cost, matching_kernel, ties=ties), first)
    # And without the rest of the output.
    columns = linear_sum_assignment(cost, ties=ties, backend=matching_kernel)
    assert torch.equal(columns, first.columns)


def test_any_number_of_threads_gives_the_same_bits(cpu_kernel, restored_threads):
    cost = assignment_costs(AssignmentCase("threads", 23, 15, 40, "hostile"))
    torch.set_num_threads(1)
    alone = solve(cost, cpu_kernel)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same(solve(cost, cpu_kernel), alone)


PROGRAM = """
import json
import torch
from dino_kernels.ops._core import libraries
from dino_kernels import linear_sum_assignment
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.testing import ASSIGNMENT_CASES, assert_same_bits, assignment_costs

failed = []
for case in ASSIGNMENT_CASES:
    for ties in ("lowest", "scipy"):
        for dtype in (torch.float32, torch.float64):
            cost = assignment_costs(case, dtype)[:3]
            results = [
                linear_sum_assignment(cost, ties=ties, full_output=True, backend=backend)
                for backend in ("cpu", "reference")
            ]
            try:
                assert_same_bits(*results, Assignment._fields)
            except AssertionError as error:
                failed.append(f"{case.id} {ties} {dtype}: {error}")
print(json.dumps({"capability": libraries.C.cpu_capability(), "failed": failed}))
"""


def test_every_instruction_set_gives_the_same_bits(cpu_kernel, run_at_capability):
    failed = run_at_capability(PROGRAM)
    assert not failed, "\n".join(failed)


def test_costs_that_require_a_gradient_give_results_without_one(matching_backend, device):
    cost = torch.randn(2, 3, 5, requires_grad=True, device=device)
    for tensor in solve(cost, matching_backend):
        assert not tensor.requires_grad


def test_shapes_and_dtypes_are_those_documented(matching_backend, device):
    result = solve(torch.rand(3, 4, 6, device=device), matching_backend)
    shapes = {name: (list(tensor.shape), tensor.dtype) for name, tensor in result._asdict().items()}
    assert shapes == {
        "columns": ([3, 4], torch.int64),
        "status": ([3], torch.int32),
        "objective": ([3], torch.float64),
        "row_duals": ([3, 4], torch.float64),
        "column_duals": ([3, 6], torch.float64),
    }
    assert {tensor.device.type for tensor in result} == {device}


COST = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.zeros(3),), {}, ValueError, ["cost must be", "[3]"]),
        ((torch.zeros(1, 2, 3, 4),), {}, ValueError, ["cost must be", "[1, 2, 3, 4]"]),
        ((COST.to(torch.complex64),), {}, TypeError, ["cost must be real", "complex64"]),
        (([COST],), {}, ValueError, ["[W, T]", "[2, 3, 4]"]),
        (([[1.0]],), {}, ValueError, ["[W, T]", "list"]),
        (([COST[0]], [[1, 1]]), {}, ValueError, ["list", "sizes"]),
        (([COST[0]],), {"full_output": True}, ValueError, ["list", "full_output"]),
        (([COST[0]],), {"offsets": torch.tensor([0, 3])}, ValueError, ["list", "offsets"]),
        ((COST, [1]), {}, ValueError, ["sizes", "B = 2", "[1, 1]"]),
        ((COST, [[1, 2, 3], [1, 2, 3]]), {}, ValueError, ["sizes", "[2, 3]"]),
        ((COST, torch.tensor([1.0, 2.0])), {}, ValueError, ["sizes", "float32"]),
        ((COST, [5, 1]), {}, ValueError, ["sizes", "T = 4", "5"]),
        ((COST, [[4, 1], [1, 1]]), {}, ValueError, ["sizes", "W = 3", "4"]),
        ((COST, [-1, 2]), {}, ValueError, ["sizes", "-1"]),
        ((COST, [1, 2]), {"offsets": torch.tensor([0, 3])}, ValueError, ["offsets and sizes"]),
        ((COST,), {"offsets": torch.tensor([0, 3], dtype=torch.int32)}, ValueError, ["offsets", "int32"]),
        ((COST,), {"offsets": torch.tensor([[0, 3]])}, ValueError, ["offsets", "[1, 2]"]),
        ((COST,), {"offsets": torch.zeros(0, dtype=torch.int64)}, ValueError, ["offsets", "[0]"]),
        ((COST,), {"offsets": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, ["meta", "cpu"]),
        ((COST,), {"ties": "first"}, ValueError, ["ties", "'lowest' or 'scipy'", "'first'"]),
        ((COST,), {"check": True}, ValueError, ["check", "'raise', 'warn' or 'none'", "True"]),
        ((COST,), {"backend": "gpu"}, ValueError, ["backend", "'auto'", "'gpu'"]),
    ],
)
def test_a_malformed_argument_is_named(arguments, options, error, words):
    with pytest.raises(error) as caught:
        linear_sum_assignment(*arguments, **options)
    assert str(caught.value).startswith("linear_sum_assignment: ")
    assert all(word in str(caught.value) for word in words), caught.value


def test_costs_are_not_copied_on_their_way():
    cost = torch.zeros(2, 3, 4)
    for given in (cost, cost.transpose(1, 2), cost[:, ::2]):
        prepared = prepare(given)
        assert prepared.cost.data_ptr() == given.data_ptr() and prepared.cost.stride() == given.stride()
