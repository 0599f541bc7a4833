"""Triton backend: the kernel of the cost, then that of the assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments as Arguments
from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments
from dino_kernels.ops.linear_sum_assignment import triton as assignment
from dino_kernels.ops.matching_cost import triton as cost
from dino_kernels.ops.matching_cost.triton import unsupported

__all__ = ["forward", "unsupported"]


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return queries [G, N], status [G, B], objective [G, B], duals [G, N] and [G, B, Q]."""
    matrix, notes = cost.cost_and_notes(arguments)
    *_, max_targets, _, _, ties, full = arguments
    problems = LinearSumAssignmentArguments(matrix, arguments.offsets, None, max_targets, False, ties, full)
    return assignment.forward(problems, notes)
