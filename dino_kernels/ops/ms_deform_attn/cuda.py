"""CUDA backend: the kernels in csrc/ms_deform_attn/*.cuh."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops.ms_deform_attn import native

# The namespace of the native ops; tests/cuda/emulation puts its own in place of it.
NATIVE = native.NAMESPACE
MAX_LEVELS = 32
MAX_SAMPLES = 1024  # per head: what the backward keeps of them has to fit a block's shared memory


def unsupported(value: Tensor, *rest: Any) -> str | None:
    """Why the CUDA kernel cannot run this call."""
    if value.device.type != "cuda":
        return f"it runs on CUDA tensors, value is on {value.device}"
    return libraries.CUDA_MISSING or libraries.unsupported_gpu(value.device.index) or unsupported_sizes(rest[3])


def unsupported_sizes(num_points: list[int]) -> str | None:
    if len(num_points) > MAX_LEVELS:
        return f"it has room for {MAX_LEVELS} levels, got {len(num_points)}"
    if sum(num_points) > MAX_SAMPLES:
        return f"it has room for {MAX_SAMPLES} samples per head, got {sum(num_points)}"
    return None


def forward(*arguments: Any) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]; arguments as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)


def backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights; arguments as in `native.backward`."""
    *_, attention_weights, wanted = arguments
    bound = sum_bound(grad_output, attention_weights) if wanted[0] else None
    return native.backward(grad_output, *arguments, sum_bound=bound, namespace=NATIVE)
