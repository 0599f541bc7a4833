"""CPU backend: the native C++ kernel in csrc/ms_deform_attn."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels import _native
from dino_kernels._layout import contiguous, heads, rows


def unsupported(value: Tensor, *rest: object) -> str | None:
    """Why the native CPU kernel cannot run this call."""
    if value.device.type != "cpu":
        return f"it runs on CPU tensors, value is on {value.device}"
    return _native.CPU_MISSING


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    sampling_locations: Tensor,  # [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, K]
) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]."""
    return torch.ops.dino_kernels_native.ms_deform_attn_forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights; those not wanted are empty."""
    grad_value, grad_locations, grad_weights = torch.ops.dino_kernels_native.ms_deform_attn_backward(
        rows(grad_output),
        heads(value),
        contiguous(spatial_shapes),
        level_sizes,
        contiguous(level_start_index),
        num_points,
        rows(sampling_locations),
        rows(attention_weights),
        wanted,
        None,
    )
    if wanted[1]:
        grad_locations = grad_locations.view(sampling_locations.shape)
    if wanted[2]:
        grad_weights = grad_weights.view(attention_weights.shape)
    return grad_value, grad_locations, grad_weights
