"""CPU and CUDA backends: the kernels in csrc/ms_deform_attn, on raw offsets and logits."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops._core.layout import heads, like, rows
from dino_kernels.ops._core.native import CPU, CUDA
from dino_kernels.ops.ms_deform_attn.native import AttentionBackend


class FusedMSDeformAttn(AttentionBackend):
    native_ops = ("fused_ms_deform_attn_forward", "fused_ms_deform_attn_backward")

    def forward(
        self,
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
        return self.kernels[0](
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
        self,
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
        grad_value, grad_reference_points, grad_offsets, grad_logits = self.kernels[1](
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
            requested,
            sum_bound(grad_output, None) if requested[0] and self.library.is_cuda else None,
        )
        if requested[1] and self.library.is_cuda:  # by head, [B, Q, M, L, 2 or 4]
            grad_reference_points = grad_reference_points.sum(2)
        if requested[2]:
            grad_offsets = like(grad_offsets, sampling_offsets)
        if requested[3]:
            grad_logits = like(grad_logits, attention_logits)
        return grad_value, grad_reference_points, grad_offsets, grad_logits


cpu, cuda = FusedMSDeformAttn(CPU), FusedMSDeformAttn(CUDA)
