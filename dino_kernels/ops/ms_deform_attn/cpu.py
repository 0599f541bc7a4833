"""CPU backend: the native C++ kernel in csrc/ms_deform_attn."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels import _native

# Rows further apart are copied: the kernel multiplies row numbers with strides of at most 31 bits in bytes.
MAX_ROW_STRIDE = 2**27


def unsupported(value: Tensor, *rest: object) -> str | None:
    """Why the native CPU kernel cannot run this call."""
    if value.device.type != "cpu":
        return f"it runs on CPU tensors, value is on {value.device}"
    return _native.CPU_MISSING


def level_tensor(spatial_shapes: Tensor | None, level_sizes: list[int]) -> Tensor:
    """The table of levels as a tensor [L, 2] on the CPU."""
    if spatial_shapes is not None:
        return spatial_shapes.contiguous()
    return torch.tensor(level_sizes).view(-1, 2)


def rows(tensor: Tensor) -> Tensor:
    """[B, Q, ...] as [B, Q, n] with a dense last dimension; other strides are the kernel's business."""
    tensor = tensor.flatten(2)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def heads(value: Tensor) -> Tensor:
    """[B, S, M, D] with dense rows of M * D; other strides are the kernel's business."""
    dense = value.stride(3) == 1 and value.stride(2) == value.shape[3]
    return value if dense and value.stride(1) < MAX_ROW_STRIDE else value.contiguous()


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
        level_tensor(spatial_shapes, level_sizes),
        level_start_index,
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
        level_tensor(spatial_shapes, level_sizes),
        level_start_index,
        num_points,
        rows(sampling_locations),
        rows(attention_weights),
        wanted,
    )
    if wanted[1]:
        grad_locations = grad_locations.view(sampling_locations.shape)
    if wanted[2]:
        grad_weights = grad_weights.view(attention_weights.shape)
    return grad_value, grad_locations, grad_weights
