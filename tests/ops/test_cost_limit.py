"""With a cost limit no other matching is better: compared with all, with SciPy on a padded matrix, and with lapx."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from dino_kernels import explain, linear_sum_assignment
from dino_kernels.ops._matching import INVALID_COST
from dino_kernels.testing import ASSIGNMENT_CASES, AssignmentCase, assignment_costs
from tests.ops.assignment import SLOW, TIES, assert_same, sized, solve, total

SHAPES = [(1, 1), (1, 4), (3, 1), (2, 3), (3, 3), (4, 2)]


def gain(matrix: Tensor, columns: Tensor, limit: float) -> float:
    """Return the sum of cost - limit, which is minimised."""
    return total(matrix, columns) - limit * int((columns >= 0).sum())


def best_gain(matrix: Tensor, limit: float) -> tuple[float, int]:
    """Return the least sum of cost - limit over all matchings of any size, and the most pairs with it."""
    rows, columns = matrix.shape
    values = matrix.double().tolist()
    best = (0.0, 0)
    for count in range(1, min(rows, columns) + 1):
        for some in itertools.combinations(range(rows), count):
            for order in itertools.permutations(range(columns), count):
                costs = [values[row][column] for row, column in zip(some, order, strict=True)]
                if all(-math.inf < cost <= limit for cost in costs):
                    best = min(best, (sum(costs) - limit * count, -count))
    return best[0], -best[1]


def padded_gain(matrix: Tensor, limit: float) -> float:
    """Return the least sum by SciPy, on the matrix with a dummy partner for each row and each column."""
    rows, columns = matrix.shape
    extended = np.full((rows + columns, rows + columns), limit / 2)
    extended[:rows, :columns] = np.nan_to_num(matrix.double().numpy(), nan=np.inf, posinf=np.inf, neginf=np.inf)
    extended[rows:, columns:] = 0
    found = scipy.optimize.linear_sum_assignment(extended)
    return float(extended[found].sum()) - limit / 2 * (rows + columns)


def assert_a_matching_within(matrix: Tensor, columns: Tensor, limit: float) -> None:
    used = columns[columns >= 0]
    assert len(used) == len(used.unique()) and (matrix[columns >= 0, used] <= limit).all()


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("ties", TIES)
def test_no_matching_is_better(matching_backend, device, ties, maximize):
    """Small integers: many ties, costs at exactly the limit, forbidden and invalid pairs."""
    generator = torch.Generator().manual_seed(3)
    shapes, problems = ([(2, 3)], 3) if matching_backend == "interpreted" else (SHAPES, 8)
    for (rows, columns), limit in itertools.product(shapes, (-2.0, 0.0, 1.0, 1.5)):
        cost = torch.randint(-3, 5, (problems, rows, columns), generator=generator).float()
        drawn = torch.rand(cost.shape, generator=generator)
        cost[drawn < 0.15] = torch.inf
        cost[-1, 0, 0] = torch.nan
        cost[-2, 0, 0] = -torch.inf
        sign = -1 if maximize else 1
        options: dict[str, Any] = {"ties": ties, "maximize": maximize, "cost_limit": sign * limit}
        result = solve(sign * cost.to(device), matching_backend, **options)
        assert result.status.tolist() == [0] * (problems - 2) + [INVALID_COST] * 2
        for matrix, found, objective in zip(cost, result.columns.cpu(), result.objective.cpu(), strict=True):
            assert_a_matching_within(matrix, found, limit)
            best, _ = best_gain(matrix, limit)
            assert gain(matrix, found, limit) == best
            assert float(objective) == sign * total(matrix, found)


def test_a_pair_at_exactly_the_limit_is_matched(matching_backend, device):
    cost = torch.tensor([[[5.0, 1.0]], [[1.0, 5.0]], [[2.0, 1.5]]], device=device)
    found = linear_sum_assignment(cost, cost_limit=1, backend=matching_backend)
    assert found.tolist() == [[1], [0], [-1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_most_pairs_are_preferred_among_equals(cpu_kernel, dtype):
    generator = torch.Generator().manual_seed(5)
    for limit in (2.0, 3.0):
        cost = torch.randint(1, 6, (200, 3, 4), generator=generator).to(dtype)
        found = linear_sum_assignment(cost, cost_limit=limit)
        for matrix, columns in zip(cost, found, strict=True):
            assert (gain(matrix, columns, limit), int((columns >= 0).sum())) == best_gain(matrix, limit)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("case", ASSIGNMENT_CASES, ids=lambda case: case.id)
def test_the_sum_is_scipys_of_the_padded_matrix(matching_backend, device, case, ties):
    cost = assignment_costs(sized(case, matching_backend), device=device)
    finite = cost[cost.isfinite()].double()
    for share in (0.02, 0.3):
        limit = float(finite.quantile(share).float()) if len(finite) else 0.5
        columns = linear_sum_assignment(cost, cost_limit=limit, ties=ties, backend=matching_backend)
        for matrix, found in zip(cost.cpu(), columns.cpu(), strict=True):
            assert_a_matching_within(matrix, found, limit)
            scale = max(abs(limit), float(finite.abs().max()) if len(finite) else 0.0)
            tolerance = 1e-12 * scale * max(1, *matrix.shape) + 2e-7 * abs(limit)  # of the limit's last bit
            assert abs(gain(matrix, found, limit) - padded_gain(matrix, limit)) <= tolerance


@pytest.mark.parametrize("ties", TIES)
def test_every_backend_returns_the_same_bits(matching_kernel, device, ties):
    case = AssignmentCase("limit", 4, 9, 14, "hostile")
    cost = assignment_costs(case.small() if matching_kernel in SLOW else case, device=device)
    for limit, maximize in ((0.0, False), (0.5, True), (-1.0, False)):
        options: dict[str, Any] = {"ties": ties, "maximize": maximize, "cost_limit": limit}
        assert_same(solve(cost, matching_kernel, **options), solve(cost, "reference", **options))


def test_sizes_and_offsets_keep_their_meaning(matching_backend, device):
    generator = torch.Generator().manual_seed(2)
    cost = torch.randn(2, 9, 6, generator=generator)
    cost[0, 1, 2], cost[1, 8, 5], cost[0, 7, 0] = torch.nan, -torch.inf, torch.inf
    options: dict[str, Any] = {"cost_limit": -0.3, "backend": matching_backend, "full_output": True}
    offsets = torch.tensor([0, 4, 4, 7])  # two rows are unused capacity
    packed = linear_sum_assignment(cost.to(device), offsets=offsets.to(device), **options)
    assert (packed.columns[:, 7:] == -1).all() and packed.status.shape == packed.objective.shape == (2, 3)
    sizes = torch.tensor([[4, 5], [9, 6]])
    sized = linear_sum_assignment(cost.to(device), sizes, **options)
    assert packed.status.tolist() == [[INVALID_COST, 0, 0], [0, 0, 0]]
    assert sized.status.tolist() == [INVALID_COST, INVALID_COST]
    problems = [(packed.columns[g, a:b], packed.objective[g, n], cost[g, a:b]) for g in range(2) for n, (a, b) in
                enumerate(itertools.pairwise(offsets.tolist()))]  # fmt: skip
    problems += [(sized.columns[g, :h], sized.objective[g], cost[g, :h, :w]) for g, (h, w) in enumerate(sizes.tolist())]
    for columns, objective, matrix in problems:
        alone = linear_sum_assignment(matrix[None].clone(), cost_limit=-0.3, backend="reference", full_output=True)
        assert columns.cpu().tolist() == alone.columns[0].tolist()
        assert float(objective) == pytest.approx(float(alone.objective[0]), abs=1e-15)
    assert (sized.columns[0, 4:] == -1).all()


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 3, 0), (0, 2, 3)])
def test_empty_problems_have_no_pairs(matching_backend, device, shape):
    result = solve(torch.zeros(shape, device=device), matching_backend, cost_limit=1.0)
    assert result.columns.shape == shape[:2] and (result.columns == -1).all()
    assert result.status.shape == (shape[0],) and (result.status == 0).all() and (result.objective == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool, torch.uint8])
def test_any_dtype_has_a_limit(matching_backend, device, dtype):
    cost = torch.randint(0, 2 if dtype == torch.bool else 9, (5, 3, 4), generator=torch.Generator().manual_seed(1))
    columns = linear_sum_assignment(cost.to(device, dtype), cost_limit=0.9, backend=matching_backend).cpu()
    for matrix, found in zip(cost, columns, strict=True):
        assert_a_matching_within(matrix, found, 0.9)
        assert gain(matrix, found, 0.9) == pytest.approx(best_gain(matrix, 0.9)[0], abs=1e-6)


def test_a_float32_cost_is_compared_with_the_limit_in_float32(cpu_kernel):
    assert linear_sum_assignment(torch.tensor([[[0.1]]]), cost_limit=0.1).tolist() == [[0]]  # 0.1f > 0.1


def test_pairs_are_scipys_form_for_one_matrix_and_lists(cpu_kernel):
    matrix = torch.tensor([[4.0, 1, 3], [2, 0, 5], [3, 2, 2]])
    rows, columns = linear_sum_assignment(matrix, cost_limit=1.5)
    assert (rows.tolist(), columns.tolist()) == ([1], [1])
    for matrices in ([matrix, matrix[:, :2]], [matrix, matrix[:2]], [matrix[:2], matrix[:, :2]]):
        for found, each in zip(linear_sum_assignment(matrices, cost_limit=1.5), matrices, strict=True):
            assert [x.tolist() for x in found] == [x.tolist() for x in linear_sum_assignment(each, cost_limit=1.5)]


def test_pairs_without_a_partner_are_no_failure(cpu_kernel):
    cost = torch.full((2, 3, 4), 9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (linear_sum_assignment(cost, cost_limit=1, check="raise") == -1).all()
    cost[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"invalid numeric entries.*in 1 of 2"):
        linear_sum_assignment(cost, cost_limit=1, check="raise")


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_limit_beyond_all_costs_matches_as_many_as_possible(cpu_kernel, dtype, maximize):
    cost = torch.tensor([[[0.5, torch.inf, torch.inf], [0.25, 0.5, torch.inf]]], dtype=dtype)
    sign = -1 if maximize else 1
    for limit in (2.0, 1e3, 1e300, math.inf):
        found = linear_sum_assignment(sign * cost, cost_limit=sign * limit, maximize=maximize)
        assert found.tolist() == [[0, 1]], limit


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_lapx(cpu_kernel, seed):
    lap = pytest.importorskip("lap", reason="lapx is not installed")
    cost = torch.rand(17, 23, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, columns, _ = lap.lapjv(cost.numpy(), extend_cost=True, cost_limit=0.08)
    found = linear_sum_assignment(cost[None], cost_limit=0.08)[0]
    assert 0 < (found >= 0).sum() < 17
    assert found.tolist() == columns.tolist()


def test_a_compiled_call_has_a_limit(cpu_kernel):
    cost = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(1))

    def call(cost: Tensor) -> Tensor:
        return linear_sum_assignment(cost, cost_limit=0.1, backend=cpu_kernel)

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(cost), call(cost))


def test_explain_takes_a_limit():
    assert explain(linear_sum_assignment, torch.zeros(1, 2, 3), cost_limit=1).backend


@pytest.mark.parametrize(
    ("limit", "maximize", "error", "message"),
    [
        ("0.5", False, TypeError, "must be a number, got '0.5'"),
        (True, False, TypeError, "must be a number, got True"),
        ([1.0], False, TypeError, r"must be a number, got \[1.0\]"),
        (math.nan, False, ValueError, "must be finite, got nan"),
        (-math.inf, False, ValueError, "must be finite, got -inf"),
        (math.inf, True, ValueError, "must be finite, got inf"),
    ],
)
def test_a_wrong_limit_is_named(limit, maximize, error, message):
    with pytest.raises(error, match=f"^linear_sum_assignment: cost_limit {message}"):
        linear_sum_assignment(torch.zeros(2, 3), maximize=maximize, cost_limit=limit)
