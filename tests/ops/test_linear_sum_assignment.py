"""Assignments are optimal, SciPy's where those are unique, and the same to the bit on every backend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dino_kernels import linear_sum_assignment, matching_cost
from dino_kernels.ops._matching import INCOMPLETE, INVALID_COST
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.testing import (
    ASSIGNMENT_CASES,
    MATCHING_CASES,
    AssignmentCase,
    MatchingCase,
    assert_optimal,
    assignment_costs,
    matching_inputs,
)
from tests.ops.assignment import SLOW, TIES, assert_same, scipy_columns, sized, solve, total

FINITE = [case for case in ASSIGNMENT_CASES if case.finite]
REALISTIC = [case for case in MATCHING_CASES if case.sets]


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
def test_the_assignment_costs_what_scipys_does_and_its_duals_certify_it(matching_backend, device, case, ties, maximize):
    """In SciPy's order, and where only one assignment is best, it is SciPy's."""
    for seed in range(3 if case.ties else 1):
        cost = assignment_costs(sized(case, matching_backend), device=device, seed=seed)
        result = solve(cost, matching_backend, ties=ties, maximize=maximize)
        assert (result.status == 0).all()
        for matrix, columns, objective in zip(cost.cpu(), result.columns.cpu(), result.objective, strict=True):
            assert_as_good_as_scipy(matrix, columns, objective, maximize)
            assert (columns >= 0).sum() == min(matrix.shape)
            if case.kind != "wide" and (ties == "scipy" or not case.ties):
                assert torch.equal(columns, scipy_columns(matrix, maximize))
        assert_optimal(cost, result, maximize, ties)


def test_scipys_choice_among_equals_is_another_one():
    """A precondition of the test above."""
    cost = assignment_costs(AssignmentCase("integers", 20, 12, 20, "integers"))
    chosen = [linear_sum_assignment(cost, ties=ties, backend="reference") for ties in TIES]
    assert not torch.equal(*chosen)


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
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", ASSIGNMENT_CASES, ids=lambda case: case.id)
def test_every_backend_returns_the_same_bits(matching_kernel, device, deterministic, case, ties, maximize):
    """Deterministic mode fills new memory, so that what a kernel leaves out shows."""
    for seed, dtype in ((0, torch.float32), (1, torch.float64)):
        cost = assignment_costs(sized(case, matching_kernel), dtype, device, seed)
        result = solve(cost, matching_kernel, ties=ties, maximize=maximize)
        assert_same(result, solve(cost, "reference", ties=ties, maximize=maximize))
        brief = linear_sum_assignment(cost, ties=ties, maximize=maximize, backend=matching_kernel)
        assert torch.equal(brief, result.columns)


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


@pytest.mark.parametrize("wrong", ["columns", "row_duals", "column_duals", "objective"])
def test_a_wrong_assignment_has_no_certificate(wrong):
    """A precondition of the tests above."""
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
        if case.kind != "hostile":
            assert_optimal(cost, result, False, ties)
            assert_optimal(-cost, solve(-cost, matching_backend, ties=ties, maximize=True), True, ties)
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
def test_what_is_not_finite_is_never_matched_and_is_reported(matching_backend, device, maximize, value, status):
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


def test_another_number_of_targets_with_every_step(matching_kernel, device):
    """No state of one size may reach the next call."""
    for targets in (3, 9, 0, 1, 12, 2, 7):
        cost = assignment_costs(AssignmentCase("step", 2, targets, 10, "integers"), device=device, seed=targets)
        assert_same(solve(cost, matching_kernel), solve(cost, "reference"))


def test_a_result_does_not_depend_on_the_rest_of_its_batch(matching_kernel, device):
    cost = assignment_costs(AssignmentCase("batch", 7, 6, 10, "hostile"), device=device)
    together = solve(cost, matching_kernel)
    for problem in range(7):
        alone = solve(cost[problem : problem + 1], matching_kernel)
        assert_same(alone, Assignment(*(tensor[problem : problem + 1] for tensor in together)))
