"""The definition of `hungarian_match`: the cost in PyTorch, then the assignment in NumPy."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops.linear_sum_assignment import reference as assignment
from dino_kernels.ops.matching_cost import reference as cost


def forward(
    logits: list[Tensor],
    boxes: list[Tensor],
    labels: Tensor,
    target_boxes: Tensor | None,
    offsets: Tensor,
    extra_cost: Tensor | None,
    max_targets: int,
    class_cost: str,
    formula: list[float],
    ties: str,
    full: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return queries [G, N], status [G, B], objective [G, B], duals [G, N] and [G, B, Q]."""
    matrix, status = cost.cost_and_status(logits, boxes, labels, target_boxes, offsets, extra_cost, class_cost, formula)
    columns, assigned_status, *others = assignment.forward(matrix, offsets, None, max_targets, False, ties, full)
    return columns, status | assigned_status, others[0], others[1], others[2]
