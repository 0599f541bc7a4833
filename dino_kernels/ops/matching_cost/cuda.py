"""CUDA backend: the kernel in csrc/matching_cost/cuda_kernel.cuh."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops.matching_cost import native

# The namespace of the native ops; tests/cuda/emulation puts its own in place of it.
NATIVE = native.NAMESPACE
MAX_SOURCES = 32  # tensors of predictions: their addresses travel with the launch, which has 4 KB for them


def unsupported(logits: list[Tensor], *rest: Any) -> str | None:
    """Why the CUDA kernel cannot run this call."""
    device = logits[0].device
    if device.type != "cuda":
        return f"it runs on CUDA tensors, logits are on {device}"
    return libraries.CUDA_MISSING or libraries.unsupported_gpu(device.index) or unsupported_sizes(logits)


def unsupported_sizes(logits: list[Tensor]) -> str | None:
    if len(logits) > MAX_SOURCES:
        return f"it takes up to {MAX_SOURCES} tensors of predictions, got {len(logits)}: stack them into one tensor"
    return None


def forward(*arguments: Any) -> Tensor:
    """Cost of every target with every query of its image, [G, N, Q] float32; arguments as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)
