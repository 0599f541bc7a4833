"""Accuracy of the matching ops: the tolerance rule of `accuracy.py` for costs, certificates for assignments.

For costs, `exact` is the formula in float64, `torch` the formula in float32 for all dtypes of inputs, and a rounding
rounds every input once more in float32. Each set of predictions is compared on its own scale. Infinite and NaN costs
must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import MatchingCostArguments
from dino_kernels.ops._matching import INCOMPLETE
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.ops.matching_cost import prepare
from dino_kernels.ops.matching_cost.reference import cost_and_status
from dino_kernels.testing.accuracy import FACTOR, ROUNDINGS, largest, rms

DRAWS = 3  # of roundings: one may happen to change small inputs little


def assert_cost_accurate(inputs: dict[str, Any], cost: Tensor, label: str = "kernel") -> None:
    """Assert the tolerance rule of this module.

    Args:
        inputs: keyword arguments of `matching_cost`.
        cost: the cost under test.
        label: name of the kernel in messages.
    """
    arguments = prepare(**inputs)
    exact, torchs = (cost_and_status(arguments, dtype)[0] for dtype in (torch.float64, torch.float32))
    if cost.shape != exact.shape or cost.dtype != torch.float32:
        raise AssertionError(f"matching_cost by {label}: {cost.dtype} {list(cost.shape)}, not {list(exact.shape)}")
    assert_same_bits([_not_finite(cost)], [_not_finite(torchs)], [f"the infinite costs by {label}"])
    finite = torchs.isfinite() & exact.isfinite()
    # Costs that overflow only in float32 are not compared.
    cost, exact, torchs = (tensor.double().where(finite, 0) for tensor in (cost, exact, torchs))
    generator = torch.Generator().manual_seed(4321)
    rounded = [cost_and_status(_moved(arguments, generator), torch.float64)[0].where(finite, 0) for _ in range(DRAWS)]
    unit = torch.finfo(torch.float32).eps / 2
    problems = []
    for index, (got, expected, other) in enumerate(zip(cost, exact, torchs, strict=True)):
        for norm, measure in (("max", largest), ("rms", rms)):
            rounding = max(measure(near[index].nan_to_num() - expected) for near in rounded) + unit * measure(expected)
            allowed = FACTOR * measure(other - expected) + ROUNDINGS * rounding
            error = measure(got - expected)
            if not error <= allowed:
                problems.append(
                    f"set {index}: {norm} error {error:.3g}, allowed {allowed:.3g} (torch in float32 errs "
                    f"{measure(other - expected):.3g}, a rounding is {rounding:.3g})"
                )
    if problems:
        raise AssertionError(f"matching_cost by {label}:\n  " + "\n  ".join(problems))


def assert_same_bits(result: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str]) -> None:
    """Assert equal dtypes, shapes and bits, including the sign of zeros; all NaN are equal."""
    for name, got, other in zip(names, result, expected, strict=True):
        if got.dtype != other.dtype or got.shape != other.shape:
            raise AssertionError(f"{name}: {got.dtype} {list(got.shape)}, not {other.dtype} {list(other.shape)}")
        got, other = got.cpu(), other.cpu()
        same = got == other
        if got.is_floating_point():
            same = (same & (got.signbit() == other.signbit())) | (got.isnan() & other.isnan())
        if not same.all():
            where = tuple((~same).nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int((~same).sum())} of {same.numel()} differ, the first at {list(where)}: got "
                f"{got[where].item()!r}, expected {other[where].item()!r}"
            )


def assert_optimal(cost: Tensor, result: Assignment, maximize: bool = False, ties: str = "lowest") -> None:
    """Assert that the duals certify each assignment: no matching of the same rows or columns is better.

    Reduced costs are not negative and 0 for matched pairs, and duals of unmatched rows or columns of the larger side
    are 0. Then the sum of all duals is the objective, and no assignment costs less.

    Args:
        cost: [B, W, T], without NaN.
        result: result of `linear_sum_assignment` with `full_output=True`.
        maximize, ties: as in the call. In SciPy's order, unmatched rows and columns have no dual.
    """
    sign = -1.0 if maximize else 1.0
    for problem, matrix in enumerate(cost.double().cpu() * sign):
        columns, status = result.columns[problem].cpu(), int(result.status[problem])
        u, v = (sign * duals[problem].cpu() for duals in (result.row_duals, result.column_duals))
        rows = (columns >= 0).nonzero()[:, 0]
        pairs = matrix[rows, columns[rows]]
        assert len(set(columns[rows].tolist())) == len(rows), f"problem {problem}: a column has two rows"
        assert pairs.isfinite().all(), f"problem {problem}: a forbidden pair is matched"
        scale = float(matrix[matrix.isfinite()].abs().max()) if matrix.isfinite().any() else 0.0
        eps = 1e-12 * scale
        slack = matrix - u[:, None] - v
        if status & INCOMPLETE and ties == "scipy":
            slack = slack[rows][:, columns[rows]]
        assert not slack.numel() or slack.min() >= -eps, f"problem {problem}: a reduced cost is {float(slack.min())}"
        total = sign * float(result.objective[problem])
        assert abs(total - float(pairs.sum())) <= eps * max(1, len(rows)), f"problem {problem}: objective {total}"
        matched = float(u[rows].sum() + v[columns[rows]].sum())
        assert abs(total - matched) <= eps * (1 + len(rows)), f"problem {problem}: matched duals sum to {matched}"
        if not status & INCOMPLETE:
            duals = float(u.sum() + v.sum())
            assert abs(total - duals) <= eps * (1 + len(rows)), f"problem {problem}: duals sum to {duals}, not {total}"
            free = torch.ones(len(v), dtype=torch.bool).index_fill(0, columns[rows], False)
            of_free = v[free] if len(rows) == len(u) else u[columns < 0]
            assert (of_free == 0).all(), f"problem {problem}: an unmatched dual is not 0"
            # Weak duality requires that no dual of the larger side is positive.
            larger = v if len(rows) == len(u) else u
            assert not larger.numel() or larger.max() <= eps, f"problem {problem}: a dual is {float(larger.max())}"


def _not_finite(cost: Tensor) -> Tensor:
    """Return the infinite and NaN costs; 0 elsewhere."""
    return cost.masked_fill(cost.isfinite(), 0)


def _moved(arguments: MatchingCostArguments, generator: torch.Generator) -> MatchingCostArguments:
    """Return every input moved by half an epsilon of float32, up or down at random."""
    half = torch.finfo(torch.float32).eps / 2

    def moved(tensor: Tensor) -> Tensor:
        sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2.0 - 1
        return tensor.double() * (1 + half * sign)

    return arguments._replace(
        logits=[moved(source) for source in arguments.logits],
        boxes=[moved(source) for source in arguments.boxes],
        target_boxes=None if arguments.target_boxes is None else moved(arguments.target_boxes),
        extra_cost=None if arguments.extra_cost is None else moved(arguments.extra_cost),
    )
