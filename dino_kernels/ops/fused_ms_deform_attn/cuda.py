"""CUDA backend: the kernels in csrc/ms_deform_attn/*.cuh, fed with raw offsets and logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops.fused_ms_deform_attn import native
from dino_kernels.ops.ms_deform_attn.cuda import unsupported

__all__ = ["backward", "forward", "unsupported"]
# The namespace of the native ops; tests/cuda/emulation puts its own in place of it.
NATIVE = native.NAMESPACE


def forward(*arguments: Any) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]; arguments as in `native.forward`."""
    return native.forward(*arguments, namespace=NATIVE)


def backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference_points, offsets and logits; arguments as in `native.backward`."""
    wanted = arguments[-1]
    bound = sum_bound(grad_output, None) if wanted[0] else None
    grad_value, by_head, grad_offsets, grad_logits = native.backward(
        grad_output, *arguments, sum_bound=bound, namespace=NATIVE
    )
    return grad_value, by_head.sum(2) if wanted[1] else by_head, grad_offsets, grad_logits
