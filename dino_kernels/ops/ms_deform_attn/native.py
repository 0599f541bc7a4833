"""The calls of the native ops, which the CPU and the CUDA backend share: the dispatcher picks the kernel by device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.layout import heads, like, rows

NAMESPACE = "dino_kernels_native"


@functools.cache
def _ops(namespace: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The native forward and backward, looked up once."""
    library = getattr(torch.ops, namespace)
    return library.ms_deform_attn_forward.default, library.ms_deform_attn_backward.default


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
    return _ops(namespace)[0](
        heads(value),
        None if spatial_shapes is None else spatial_shapes.contiguous(),
        level_sizes,
        None if level_start_index is None else level_start_index.contiguous(),
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
    grad_value, grad_locations, grad_weights = _ops(namespace)[1](
        rows(grad_output),
        heads(value),
        None if spatial_shapes is None else spatial_shapes.contiguous(),
        level_sizes,
        None if level_start_index is None else level_start_index.contiguous(),
        num_points,
        rows(sampling_locations),
        rows(attention_weights),
        wanted,
        sum_bound,
    )
    if wanted[1]:
        grad_locations = like(grad_locations, sampling_locations)
    if wanted[2]:
        grad_weights = like(grad_weights, attention_weights)
    return grad_value, grad_locations, grad_weights
