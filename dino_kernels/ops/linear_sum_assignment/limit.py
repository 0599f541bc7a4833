"""Costs with a limit, above which both sides stay unmatched: an ordinary problem of the same size, and back.

Each cost above the limit is replaced by the next number after the limit; pairs with this cost are then taken out of
the assignment. README.md proves that the rest is optimal. Nothing here synchronises with a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dino_kernels.ops._checks import check_number
from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments
from dino_kernels.ops._matching import INVALID_COST


def check_limit(op: str, limit: float | None, maximize: bool) -> float | None:
    """Return the limit, or None if it forbids nothing."""
    if limit is None:
        return None
    if limit == (-math.inf if maximize else math.inf):
        return None
    check_number(op, "cost_limit", limit)
    return float(limit)


def limited(arguments: Arguments, limit: float) -> tuple[Arguments, Tensor]:
    """Replace costs above the limit (with `maximize`: below it); return the problems, and the mask of the others."""
    cost, maximize = arguments.cost, arguments.maximize
    most = torch.finfo(cost.dtype).max * (1 - torch.finfo(cost.dtype).eps)  # a finite number follows
    bound = torch.full((), min(max(limit, -most), most), dtype=cost.dtype, device=cost.device)
    # The infinity that would always win is invalid, as is NaN.
    allowed = (cost >= bound) & (cost < math.inf) if maximize else (cost <= bound) & (cost > -math.inf)
    replacement = torch.nextafter(bound, torch.full_like(bound, -math.inf if maximize else math.inf))
    return arguments._replace(cost=torch.where(allowed, cost, replacement)), allowed


def unlimited(outputs: tuple[Tensor, ...], arguments: Arguments, allowed: Tensor) -> tuple[Tensor, ...]:
    """Return columns, status, objective and duals without the pairs above the limit.

    Args:
        outputs: those for the result of `limited`.
        arguments: the argument of `limited`.
        allowed: the mask of `limited`.
    """
    columns, status, objective, *duals = outputs
    cost, offsets = arguments.cost, arguments.offsets
    if cost.shape[2] > 0:
        found = columns.clamp(min=0)[..., None]
        kept = (columns >= 0) & allowed.gather(2, found)[..., 0]
        columns = columns.where(kept, -1)
        if arguments.full:
            objective = _sums(cost.gather(2, found)[..., 0].double().where(kept, 0.0), offsets)
    invalid = _sums(_invalid_in_row(arguments).double(), offsets) > 0
    return columns, status | INVALID_COST * invalid.to(status.dtype), objective, *duals


def _invalid_in_row(arguments: Arguments) -> Tensor:
    """Return whether a row has an invalid cost among those in use, [G, R]."""
    cost, sizes = arguments.cost, arguments.sizes
    invalid = cost.isnan() | (cost == (math.inf if arguments.maximize else -math.inf))
    if sizes is not None:
        rows, columns = (torch.arange(length, device=cost.device) for length in cost.shape[1:])
        invalid &= (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    return invalid.any(2)


def _sums(of_rows: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the sum of each problem, [G, B], of numbers [G, R]."""
    if offsets is None:
        return of_rows.sum(1, keepdim=True)
    # In the order of rows on every device; rows of unused capacity are in no problem.
    sums = torch.segment_reduce(of_rows.t().contiguous(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0)
    return sums.t()
