"""Triton backend: the kernel in triton_kernel.py, one program per problem."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments

TILE_ROWS = 8
TILE_COLUMNS = 256
CHUNK = 256
MAX_SIDE = 2**31 - 2**12  # indices are int32, and a tile may extend beyond the last one


def kernels() -> tuple[ModuleType, ModuleType]:
    """Import and return the modules of the kernel and of its scratch memory; see matching_cost/triton.py."""
    from dino_kernels.ops.linear_sum_assignment import triton_kernel, triton_scratch

    return triton_kernel, triton_scratch


def unsupported(arguments: Arguments) -> str | None:
    """Return why the Triton kernel cannot run this call, or None."""
    cost = arguments.cost
    if cost.shape[1] > MAX_SIDE or cost.shape[2] > MAX_SIDE:
        return f"it has room for {MAX_SIDE} rows and columns, got {list(cost.shape)}"
    return triton_support.unsupported("cost", cost)


def forward(
    arguments: Arguments,
    notes: Tensor | None = None,  # [G, B, n]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return columns [G, R], status [G, B], objective [G, B], duals [G, R] and [G, B, C]; B is 1 without offsets."""
    cost, offsets, sizes, max_rows, maximize, ties, full = arguments
    groups, rows, columns = cost.shape
    problems = 1 if offsets is None else len(offsets) - 1
    kernel, scratch = kernels()
    max_rows = min(max_rows, rows)
    bound = min(max_rows, columns)
    floats, integers = scratch.sizes(bound, max(max_rows, columns), ties == "scipy")

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=cost.device)

    assigned = torch.full((groups, rows), -1, device=cost.device)
    status = empty(torch.int32, groups, problems)
    if full:
        objective = empty(torch.float64, groups, problems)
        row_duals = empty(torch.float64, groups, rows).zero_()
        column_duals = empty(torch.float64, groups, problems, columns).zero_()
    else:
        objective = row_duals = column_duals = None
    if groups * problems > 0:
        with triton_support.on_device_of(cost):
            kernel.linear_sum_assignment[(groups * problems,)](
                cost,
                None if offsets is None else offsets.contiguous(),
                None if sizes is None else sizes.contiguous(),
                notes,
                assigned,
                status,
                objective,
                row_duals,
                column_duals,
                empty(torch.float64, groups * problems, floats),
                empty(torch.int32, groups * problems, integers),
                problems,
                rows,
                columns,
                max_rows,
                bound,
                *cost.stride(),
                0 if notes is None else notes.shape[2],
                floats,
                integers,
                -1.0 if maximize else 1.0,
                AS_SCIPY=ties == "scipy",
                TILE_ROWS=TILE_ROWS,
                TILE_COLUMNS=TILE_COLUMNS,
                CHUNK=CHUNK,
            )
    if objective is None or row_duals is None or column_duals is None:
        nothing = empty(torch.float64, 0)
        return assigned, status, nothing, nothing.clone(), nothing.clone()
    return assigned, status, objective, row_duals, column_duals
