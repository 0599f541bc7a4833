"""The definition of `hungarian_match`: the cost in PyTorch, then the assignment in NumPy."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments as Arguments
from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments
from dino_kernels.ops.linear_sum_assignment import reference as assignment
from dino_kernels.ops.matching_cost import reference as cost


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return queries [G, N], status [G, B], objective [G, B], duals [G, N] and [G, B, Q]."""
    matrix, status = cost.cost_and_status(arguments)
    *_, max_targets, _, _, ties, full = arguments
    problems = LinearSumAssignmentArguments(matrix, arguments.offsets, None, max_targets, False, ties, full)
    columns, assigned_status, *others = assignment.forward(problems)
    return columns, status | assigned_status, others[0], others[1], others[2]
