"""The calls of the native ops, which the CPU and the CUDA backend share: the dispatcher picks the kernel by device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.layout import heads, like, rows
from dino_kernels.ops.ms_deform_attn.native import NAMESPACE


@functools.cache
def _ops(namespace: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The native forward and backward, looked up once."""
    library = getattr(torch.ops, namespace)
    return library.fused_ms_deform_attn_forward.default, library.fused_ms_deform_attn_backward.default


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
        reference_points.contiguous(),
        rows(sampling_offsets),
        rows(attention_logits),
        None if value_mask is None else value_mask.contiguous(),
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
    *,
    sum_bound: Tensor | None = None,  # [1]; see `_fixed_point.sum_bound`
    namespace: str = NAMESPACE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference_points, offsets and logits; those not wanted are empty.

    The CUDA kernels return that of reference_points by head, [B, Q, M, L, 2 or 4].
    """
    grad_value, grad_reference_points, grad_offsets, grad_logits = _ops(namespace)[1](
        rows(grad_output),
        heads(value),
        None if spatial_shapes is None else spatial_shapes.contiguous(),
        level_sizes,
        None if level_start_index is None else level_start_index.contiguous(),
        num_points,
        reference_points.contiguous(),
        rows(sampling_offsets),
        rows(attention_logits),
        None if value_mask is None else value_mask.contiguous(),
        wanted,
        sum_bound,
    )
    if wanted[2]:
        grad_offsets = like(grad_offsets, sampling_offsets)
    if wanted[3]:
        grad_logits = like(grad_logits, attention_logits)
    return grad_value, grad_reference_points, grad_offsets, grad_logits
