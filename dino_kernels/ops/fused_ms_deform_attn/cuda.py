"""CUDA backend: the kernels in csrc/ms_deform_attn/*.cuh, fed with raw offsets and logits."""

from __future__ import annotations

from torch import Tensor

from dino_kernels._layout import contiguous, heads, rows
from dino_kernels.ops.ms_deform_attn.cuda import native_op, sum_bound, unsupported

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
    """The value-weighted sum of samples, [B, Q, M * D]."""
    return native_op("fused_ms_deform_attn_forward")(
        heads(value),
        contiguous(spatial_shapes),
        level_sizes,
        contiguous(level_start_index),
        num_points,
        reference_points.contiguous(),
        rows(sampling_offsets),
        rows(attention_logits),
        contiguous(value_mask),
    )


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
    sampling_offsets: Tensor,  # [B, Q, M, K, 2]
    attention_logits: Tensor,  # [B, Q, M, K]
    value_mask: Tensor | None,  # [B, S]
    wanted: list[bool],  # [4]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference_points, offsets and logits; those not wanted are empty."""
    grad_value, grad_reference_by_head, grad_offsets, grad_logits = native_op("fused_ms_deform_attn_backward")(
        rows(grad_output),
        heads(value),
        contiguous(spatial_shapes),
        level_sizes,
        contiguous(level_start_index),
        num_points,
        reference_points.contiguous(),
        rows(sampling_offsets),
        rows(attention_logits),
        contiguous(value_mask),
        wanted,
        sum_bound(grad_output, None) if wanted[0] else None,
    )
    if wanted[2]:
        grad_offsets = grad_offsets.view(sampling_offsets.shape)
    if wanted[3]:
        grad_logits = grad_logits.view(attention_logits.shape)
    grad_reference_points = grad_reference_by_head.sum(2) if wanted[1] else grad_reference_by_head
    return grad_value, grad_reference_points, grad_offsets, grad_logits
