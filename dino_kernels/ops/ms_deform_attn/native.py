"""The calls of the native ops, which the CPU and the CUDA backend share: the dispatcher picks the kernel by device."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels._layout import contiguous, heads, rows

NAMESPACE = "dino_kernels_native"


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    sampling_locations: Tensor,  # [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, K]
    *,
    namespace: str = NAMESPACE,
) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]."""
    return getattr(torch.ops, namespace).ms_deform_attn_forward(
        heads(value),
        contiguous(spatial_shapes),
        level_sizes,
        contiguous(level_start_index),
        num_points,
        rows(sampling_locations),
        rows(attention_weights),
    )


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    sampling_locations: Tensor,  # [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, K]
    wanted: list[bool],  # [3]
    *,
    sum_bound: Tensor | None = None,  # [1]; see `_fixed_point.sum_bound`
    namespace: str = NAMESPACE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights; those not wanted are empty."""
    grad_value, grad_locations, grad_weights = getattr(torch.ops, namespace).ms_deform_attn_backward(
        rows(grad_output),
        heads(value),
        contiguous(spatial_shapes),
        level_sizes,
        contiguous(level_start_index),
        num_points,
        rows(sampling_locations),
        rows(attention_weights),
        wanted,
        sum_bound,
    )
    if wanted[1]:
        grad_locations = grad_locations.view(sampling_locations.shape)
    if wanted[2]:
        grad_weights = grad_weights.view(attention_weights.shape)
    return grad_value, grad_locations, grad_weights
