"""Triton backend: the kernels of `ms_deform_attn`, on raw offsets and logits."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.arguments import FusedMSDeformAttnArguments as Arguments
from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops.ms_deform_attn import triton as classic
from dino_kernels.ops.ms_deform_attn.triton import unsupported

__all__ = ["backward", "forward", "unsupported"]


def forward(arguments: Arguments) -> Tensor:
    """Return the weighted sum of samples, [B, Q, M * D]."""
    return classic.run_forward(classic.Call(*arguments))


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    arguments: Arguments,
    requested: list[bool],  # [4]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, reference_points, offsets and logits; empty if not requested."""
    bound = sum_bound(grad_output, None) if requested[0] else None
    call = classic.Call(*arguments)
    grad_value, by_head, grad_offsets, grad_logits = classic.run_backward(grad_output, call, requested, bound)
    return grad_value, by_head.sum(2) if requested[1] else by_head, grad_offsets, grad_logits
