"""CUDA backend: the kernels in csrc/linear_sum_assignment/cuda_kernel.cuh."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops.linear_sum_assignment import native

# The namespace of the native ops; tests/cuda/emulation puts its own in place of it.
NATIVE = native.NAMESPACE


def unsupported(cost: Tensor, *rest: Any) -> str | None:
    """Why the CUDA kernel cannot run this call."""
    if cost.device.type != "cuda":
        return f"it runs on CUDA tensors, cost is on {cost.device}"
    return libraries.CUDA_MISSING or libraries.unsupported_gpu(cost.device.index)


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Columns, status, objective and both duals; arguments and shapes as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)
