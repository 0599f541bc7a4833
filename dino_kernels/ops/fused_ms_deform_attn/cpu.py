"""CPU backend: the native C++ kernel in csrc/ms_deform_attn, fed with raw offsets and logits."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels._layout import contiguous, heads, rows
from dino_kernels.ops.ms_deform_attn.cpu import unsupported

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
    return torch.ops.dino_kernels_native.fused_ms_deform_attn_forward(
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
    grad_value, grad_reference_points, grad_offsets, grad_logits = (
        torch.ops.dino_kernels_native.fused_ms_deform_attn_backward(
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
            None,
        )
    )
    if wanted[2]:
        grad_offsets = grad_offsets.view(sampling_offsets.shape)
    if wanted[3]:
        grad_logits = grad_logits.view(attention_logits.shape)
    return grad_value, grad_reference_points, grad_offsets, grad_logits
