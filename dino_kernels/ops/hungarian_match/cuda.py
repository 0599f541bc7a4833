"""CUDA backend: the kernels of matching_cost and linear_sum_assignment, one after the other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops.hungarian_match import native
from dino_kernels.ops.matching_cost.cuda import unsupported

__all__ = ["forward", "unsupported"]

# The namespace of the native ops; tests/cuda/emulation puts its own in place of it.
NATIVE = native.NAMESPACE


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, status, objective and both duals; arguments and shapes as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)
