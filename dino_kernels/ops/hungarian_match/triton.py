"""Triton backend: the kernel of the cost, then that of the assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops.linear_sum_assignment import triton as assignment
from dino_kernels.ops.matching_cost import triton as cost


def unsupported(logits: list[Tensor], *rest: object) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    return cost.unsupported(logits)


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
    matrix, notes = cost.cost_and_notes(logits, boxes, labels, target_boxes, offsets, extra_cost, class_cost, formula)
    return assignment.forward(matrix, offsets, None, max_targets, False, ties, full, notes)
