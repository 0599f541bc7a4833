"""CPU and CUDA backends: the kernels in csrc/ms_deform_attn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.arguments import MSDeformAttnArguments as Arguments
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

    native_ops = ("ms_deform_attn_forward", "ms_deform_attn_backward")
    first_argument = "value"

    def exceeded_limit(self, arguments: Any) -> str | None:
        return unsupported_sizes(arguments.num_points)


class MSDeformAttn(AttentionBackend):
    def for_kernel(self, arguments: Arguments) -> tuple[Any, ...]:
        """Return the arguments in the order and with the strides that kernels take."""
        value, shapes, sizes, starts, counts, locations, weights = arguments
        # Without `contiguous`, whose calls are a twentieth of the time on the host.
        shapes = None if shapes is None else shapes.contiguous()
        starts = None if starts is None else starts.contiguous()
        return heads(value), shapes, sizes, starts, counts, rows(locations), rows(weights), None, None

    def forward(self, arguments: Arguments) -> Tensor:
        """Return the weighted sum of samples, [B, Q, M * D]."""
        return self.kernels[0](*self.for_kernel(arguments))

    def backward(
        self,
        grad_output: Tensor,  # [B, Q, M * D]
        arguments: Arguments,
        requested: list[bool],  # [3]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of value, sampling_locations and attention_weights; empty if not requested."""
        *_, locations, weights = arguments
        bound = sum_bound(grad_output, weights) if requested[0] and self.library.is_cuda else None
        grad_value, grad_locations, grad_weights, _ = self.kernels[1](
            rows(grad_output), *self.for_kernel(arguments), [*requested, False], bound
        )
        if requested[1]:
            grad_locations = like(grad_locations, locations)
        if requested[2]:
            grad_weights = like(grad_weights, weights)
        return grad_value, grad_locations, grad_weights


cpu, cuda = MSDeformAttn(CPU), MSDeformAttn(CUDA)
