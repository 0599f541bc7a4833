"""CPU backend: the native C++ kernel in csrc/linear_sum_assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops.linear_sum_assignment.native import forward

__all__ = ["forward", "unsupported"]


def unsupported(cost: Tensor, *rest: object) -> str | None:
    """Why the native CPU kernel cannot run this call."""
    device = cost.device
    if device.type != "cpu":
        return f"it runs on CPU tensors, cost is on {device}"
    return libraries.CPU_MISSING
