"""Check a matcher before it is timed: its costs are the formula's, its assignment is as good as SciPy's."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.matching.peers import Matcher, MatchingInputs, own_pairs_cost
from benchmarks.matching.workloads import ASSIGNMENT, COST

# Relative to the sum of the assigned costs' absolute values: solvers may add up in another order.
OBJECTIVE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Truth:
    """What is right for one step, in float64, on the CPU."""

    cost: Tensor  # [G, N, Q]
    error: float  # largest of the formula computed in float32
    objective: Tensor  # [G, B] the least possible sum


@functools.lru_cache(maxsize=2)
def truth_of(inputs: MatchingInputs, of_given_costs: bool, giou_eps: float) -> Truth:
    if of_given_costs:
        cost, error = inputs.cost.double().cpu(), 0.0
    else:
        cost = own_pairs_cost(inputs, torch.float64, giou_eps).cpu()
        in_float32 = own_pairs_cost(inputs, torch.float32, giou_eps).cpu()
        error = largest(in_float32 - cost) + 2 * torch.finfo(torch.float32).eps * largest(cost)
    objective = torch.zeros(inputs.step.sets, inputs.step.images, dtype=torch.float64)
    for row, layer in zip(objective, cost, strict=True):
        for image, matrix in enumerate(layer.split(inputs.counts)):
            row[image] = matrix[linear_sum_assignment(matrix)].sum()
    return Truth(cost, error, objective)


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def assert_right(matcher: Matcher, op: str, inputs: MatchingInputs, result: Any) -> None:
    """Check what `matcher.run` returned.

    Raises:
        AssertionError: a cost, a pair or the sum of the costs is wrong.
    """
    answer = matcher.answer(op, inputs, result).cpu()
    truth = truth_of(inputs, op == ASSIGNMENT, matcher.giou_eps)
    problem = _wrong_cost(answer, truth) if op == COST else _wrong_columns(answer, truth, inputs)
    if problem is not None:
        raise AssertionError(f"{op} by {matcher.name} is wrong ({inputs.step.id}): {problem}")


def _wrong_cost(cost: Tensor, truth: Truth) -> str | None:
    if cost.shape != truth.cost.shape:
        return f"shape {list(cost.shape)}, expected {list(truth.cost.shape)}"
    error = largest(cost - truth.cost)
    if error <= 2 * truth.error:  # false for NaN
        return None
    return f"a cost is off by {error:.3g} where the formula in float32 is off by {truth.error:.3g}"


def _wrong_columns(columns: Tensor, truth: Truth, inputs: MatchingInputs) -> str | None:
    sets, targets, queries = truth.cost.shape
    if list(columns.shape) != [sets, targets]:
        return f"shape {list(columns.shape)}, expected {[sets, targets]}"
    if columns.numel() and not -1 <= int(columns.min()) <= int(columns.max()) < queries:
        return f"queries are in {int(columns.min())}..{int(columns.max())}, of {queries}"
    for row, (chosen, cost) in enumerate(zip(columns, truth.cost, strict=True)):
        parts = zip(chosen.split(inputs.counts), cost.split(inputs.counts), strict=True)
        for image, (some, matrix) in enumerate(parts):
            where, matched = f"set {row}, image {image}", some[some >= 0]
            if len(matched.unique()) < len(matched):
                return f"{where}: two targets have the same query"
            if len(matched) < min(matrix.shape):
                return f"{where}: {len(matched)} pairs of {min(matrix.shape)}"
            taken = matrix[some >= 0, matched]
            got, best = taken.sum().item(), truth.objective[row, image].item()
            # With an error of e in each cost, each pair may be off by e, and so may the better one.
            allowed = OBJECTIVE_TOLERANCE * taken.abs().sum().item() + 2 * len(matched) * truth.error
            if not abs(got - best) <= allowed:
                return f"{where}: the sum of its costs is {got:.9g}, SciPy's {best:.9g}"
    return None
