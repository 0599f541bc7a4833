"""Triton backend: the kernels of `ms_deform_attn`, on raw offsets and logits."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops.ms_deform_attn import triton as classic
from dino_kernels.ops.ms_deform_attn.triton import unsupported

__all__ = ["backward", "forward", "unsupported"]


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
    sampling_offsets: Tensor,  # [B, Q, M, K, 2]
    attention_logits: Tensor,  # [B, Q, M, K]
    value_mask: Tensor | None,  # [B, S]
) -> Tensor:
    """Return the weighted sum of samples, [B, Q, M * D]."""
    levels = spatial_shapes, level_sizes, level_start_index, num_points
    return classic.run_forward(value, levels, sampling_offsets, attention_logits, reference_points, value_mask)


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    value: Tensor,
    spatial_shapes: Tensor | None,
    level_sizes: list[int],
    level_start_index: Tensor | None,
    num_points: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    value_mask: Tensor | None,
    requested: list[bool],  # [4]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, reference_points, offsets and logits; empty if not requested."""
    levels = spatial_shapes, level_sizes, level_start_index, num_points
    bound = sum_bound(grad_output, None) if requested[0] else None
    grad_value, by_head, grad_offsets, grad_logits = classic.run_backward(
        grad_output,
        value,
        levels,
        sampling_offsets,
        attention_logits,
        requested,
        bound,
        reference_points,
        value_mask,
    )
    return grad_value, by_head.sum(2) if requested[1] else by_head, grad_offsets, grad_logits
