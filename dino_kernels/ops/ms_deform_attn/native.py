"""CPU and CUDA backends: the kernels in csrc/ms_deform_attn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops._core.layout import heads, like, rows
from dino_kernels.ops._core.native import CPU, CUDA, NativeBackend

MAX_LEVELS = 32
MAX_SAMPLES = 1024  # per head: the backward keeps them in a block's shared memory


def unsupported_sizes(num_points: list[int]) -> str | None:
    """Return which limit of the CUDA kernels a call with these points per level exceeds, or None."""
    if len(num_points) > MAX_LEVELS:
        return f"it has room for {MAX_LEVELS} levels, got {len(num_points)}"
    if sum(num_points) > MAX_SAMPLES:
        return f"it has room for {MAX_SAMPLES} samples per head, got {sum(num_points)}"
    return None


class AttentionBackend(NativeBackend):
    """The part that both attention ops share."""

    first_argument = "value"

    def exceeded_limit(self, *arguments: Any) -> str | None:
        return unsupported_sizes(arguments[4])


class MSDeformAttn(AttentionBackend):
    native_ops = ("ms_deform_attn_forward", "ms_deform_attn_backward")

    def forward(
        self,
        value: Tensor,  # [B, S, M, D]
        spatial_shapes: Tensor | None,  # [L, 2]
        level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
        level_start_index: Tensor | None,  # [L]
        num_points: list[int],  # [L]
        sampling_locations: Tensor,  # [B, Q, M, K, 2]
        attention_weights: Tensor,  # [B, Q, M, K]
    ) -> Tensor:
        """Return the weighted sum of samples, [B, Q, M * D]."""
        return self.kernels[0](
            heads(value),
            None if spatial_shapes is None else spatial_shapes.contiguous(),
            level_sizes,
            None if level_start_index is None else level_start_index.contiguous(),
            num_points,
            rows(sampling_locations),
            rows(attention_weights),
        )

    def backward(
        self,
        grad_output: Tensor,  # [B, Q, M * D]
        value: Tensor,
        spatial_shapes: Tensor | None,
        level_sizes: list[int],
        level_start_index: Tensor | None,
        num_points: list[int],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        requested: list[bool],  # [3]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of value, sampling_locations and attention_weights; empty if not requested."""
        grad_value, grad_locations, grad_weights = self.kernels[1](
            rows(grad_output),
            heads(value),
            None if spatial_shapes is None else spatial_shapes.contiguous(),
            level_sizes,
            None if level_start_index is None else level_start_index.contiguous(),
            num_points,
            rows(sampling_locations),
            rows(attention_weights),
            requested,
            sum_bound(grad_output, attention_weights) if requested[0] and self.library.is_cuda else None,
        )
        if requested[1]:
            grad_locations = like(grad_locations, sampling_locations)
        if requested[2]:
            grad_weights = like(grad_weights, attention_weights)
        return grad_value, grad_locations, grad_weights


cpu, cuda = MSDeformAttn(CPU), MSDeformAttn(CUDA)
