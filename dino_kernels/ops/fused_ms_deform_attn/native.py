"""CPU and CUDA backends: the kernels in csrc/ms_deform_attn, on raw offsets and logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.arguments import FusedMSDeformAttnArguments as Arguments
from dino_kernels.ops._core.fixed_point import sum_bound
from dino_kernels.ops._core.layout import heads, like, rows
from dino_kernels.ops._core.native import CPU, CUDA
from dino_kernels.ops.ms_deform_attn.native import AttentionBackend


class FusedMSDeformAttn(AttentionBackend):
    def for_kernel(self, arguments: Arguments) -> tuple[Any, ...]:
        """Return the arguments in the order and with the strides that kernels take."""
        value, shapes, sizes, starts, counts, references, offsets, logits, mask = arguments
        shapes = None if shapes is None else shapes.contiguous()
        starts = None if starts is None else starts.contiguous()
        mask = None if mask is None else mask.contiguous()
        samples = rows(offsets), rows(logits), references.contiguous(), mask
        return heads(value), shapes, sizes, starts, counts, *samples

    def forward(self, arguments: Arguments) -> Tensor:
        """Return the weighted sum of samples, [B, Q, M * D]."""
        return self.kernels[0](*self.for_kernel(arguments))

    def backward(
        self,
        grad_output: Tensor,  # [B, Q, M * D]
        arguments: Arguments,
        requested: list[bool],  # [4]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of value, reference_points, offsets and logits; empty if not requested."""
        of_value, of_references, of_offsets, of_logits = requested
        bound = sum_bound(grad_output, None) if of_value and self.library.is_cuda else None
        wanted = [of_value, of_offsets, of_logits, of_references]
        grad_value, grad_offsets, grad_logits, grad_references = self.kernels[1](
            rows(grad_output), *self.for_kernel(arguments), wanted, bound
        )
        if of_references and self.library.is_cuda:  # by head, [B, Q, M, L, 2 or 4]
            grad_references = grad_references.sum(2)
        if of_offsets:
            grad_offsets = like(grad_offsets, arguments.sampling_offsets)
        if of_logits:
            grad_logits = like(grad_logits, arguments.attention_logits)
        return grad_value, grad_references, grad_offsets, grad_logits


cpu, cuda = FusedMSDeformAttn(CPU), FusedMSDeformAttn(CUDA)
