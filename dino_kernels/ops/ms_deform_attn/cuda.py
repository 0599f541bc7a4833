"""CUDA backend: the kernels in csrc/ms_deform_attn/*.cuh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dino_kernels import _native
from dino_kernels.ops.ms_deform_attn import native

# The namespace of the native ops; tests/emulation puts its own in place of it.
NATIVE = native.NAMESPACE
MAX_LEVELS = 32
MAX_SAMPLES = 1024  # per head: what the backward keeps of them has to fit a block's shared memory


def unsupported(value: Tensor, *rest: Any) -> str | None:
    """Why the CUDA kernel cannot run this call."""
    if value.device.type != "cuda":
        return f"it runs on CUDA tensors, value is on {value.device}"
    return _native.CUDA_MISSING or _native.unsupported_gpu(value.device.index) or unsupported_sizes(rest[3])


def unsupported_sizes(num_points: list[int]) -> str | None:
    if len(num_points) > MAX_LEVELS:
        return f"it has room for {MAX_LEVELS} levels, got {len(num_points)}"
    if sum(num_points) > MAX_SAMPLES:
        return f"it has room for {MAX_SAMPLES} samples per head, got {sum(num_points)}"
    return None


def sum_bound(grad_output: Tensor, weights: Tensor | None) -> Tensor | None:
    """What no single term of grad_value exceeds, in deterministic mode: the scale of its fixed-point sums.

    Args:
        grad_output: gradient of the output.
        weights: attention weights, or None where they are a softmax's and at most 1.

    Returns:
        One number on the device, in the compute dtype; or None, which asks for sums in floating point.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return None
    compute = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    if grad_output.numel() == 0:
        return torch.zeros(1, dtype=compute, device=grad_output.device)
    bound = torch.linalg.vector_norm(grad_output, torch.inf).to(compute)
    if weights is not None and weights.numel() > 0:
        bound = bound * torch.linalg.vector_norm(weights, torch.inf).to(compute)
    return bound.view(1)


def forward(*arguments: Any) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]; arguments as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)


def backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights; arguments as in `native.backward`."""
    *_, attention_weights, wanted = arguments
    bound = sum_bound(grad_output, attention_weights) if wanted[0] else None
    return native.backward(grad_output, *arguments, sum_bound=bound, namespace=NATIVE)
