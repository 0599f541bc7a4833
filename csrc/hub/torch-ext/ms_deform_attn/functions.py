"""The ops of this build as functions, differentiable and with shapes for torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix, ops

# Arguments of the ops that have a gradient: value, positions and weights of nine.
_DIFFERENTIABLE = (0, 5, 6)


def ms_deform_attn(
    value: Tensor,  # [B, S, M, D]
    level_sizes: Sequence[tuple[int, int]],  # [L] (H, W)
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
) -> Tensor:
    """Compute multi-scale deformable attention (arXiv 2010.04159, equation 3), differentiably.

    Returns:
        [B, Q, M * D], in value's dtype. Locations are used in float32 (float64 for float64), never in 16 bit.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.
    """
    sizes = [size for level in level_sizes for size in level]
    return ops.ms_deform_attn_forward(*_arguments(value, None, sizes, None, sampling_locations, attention_weights))


def ms_deform_attn_forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor,  # [L, 2] (H, W)
    level_start_index: Tensor,  # [L]
    sampling_loc: Tensor,  # [B, Q, M, L, P, 2]
    attn_weight: Tensor,  # [B, Q, M, L, P]
    im2col_step: int = 64,
) -> Tensor:
    """Return the attention of the original extension, [B, Q, M * D]; every batch runs at once, whatever the step."""
    given = _arguments(value, spatial_shapes, [], level_start_index, sampling_loc, attn_weight)
    return ops.ms_deform_attn_forward(*given)


def ms_deform_attn_backward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor,  # [L, 2] (H, W)
    level_start_index: Tensor,  # [L]
    sampling_loc: Tensor,  # [B, Q, M, L, P, 2]
    attn_weight: Tensor,  # [B, Q, M, L, P]
    grad_output: Tensor,  # [B, Q, M * D]
    im2col_step: int = 64,
) -> list[Tensor]:
    """Return the gradients of value, locations and weights, in the dtypes of these."""
    given = _arguments(value, spatial_shapes, [], level_start_index, sampling_loc, attn_weight)
    grads = _native_backward(grad_output, given, [True] * 3)
    return [grad.to(tensor.dtype) for grad, tensor in zip(grads, (value, sampling_loc, attn_weight), strict=True)]


def _arguments(
    value: Tensor, shapes: Tensor | None, sizes: list[int], starts: Tensor | None, locations: Tensor, weights: Tensor
) -> tuple[Any, ...]:
    """Return the arguments of the forward op, in the dtypes and strides that it takes."""
    compute = torch.float64 if value.dtype == torch.float64 else torch.float32
    locations = locations.to(compute)
    weights = weights if weights.dtype == value.dtype else weights.to(compute)
    points = [locations.shape[4]] * locations.shape[3]
    shapes = None if shapes is None else shapes.contiguous()
    starts = None if starts is None else starts.contiguous()
    flat = value.contiguous(), locations.contiguous(), weights.contiguous()
    return flat[0], shapes, sizes, starts, points, *flat[1:], None, None


def _native_backward(grad_output: Tensor, given: tuple[Any, ...], requested: list[bool]) -> list[Tensor]:
    bound = None
    if given[0].is_cuda and requested[0] and torch.are_deterministic_algorithms_enabled():
        # The scale of sums in fixed point, which are the same in any order: the largest term of grad_value.
        largest = [torch.linalg.vector_norm(tensor, torch.inf) for tensor in (grad_output, given[6]) if tensor.numel()]
        bound = (largest[0].to(given[5].dtype) * largest[1] if len(largest) == 2 else given[5].new_zeros(())).view(1)
    grads = ops.ms_deform_attn_backward(grad_output.contiguous(), *given, [*requested, False], bound)
    return list(grads[:3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, shapes, sizes, starts, points, locations, weights, _, _ = inputs
    ctx.save_for_backward(value, shapes, starts, locations, weights)
    ctx.lists = sizes, points


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, shapes, starts, locations, weights = ctx.saved_tensors
    sizes, points = ctx.lists
    requested = [ctx.needs_input_grad[index] for index in _DIFFERENTIABLE]
    given = value, shapes, sizes, starts, points, locations, weights, None, None
    grads: list[Tensor | None] = [None] * 9
    found = _native_backward(grad_output, given, requested)
    for index, needed, grad in zip(_DIFFERENTIABLE, requested, found, strict=True):
        grads[index] = grad if needed else None
    return tuple(grads)


@torch.library.register_fake(add_op_namespace_prefix("ms_deform_attn_forward"))
def _fake_forward(
    value: Tensor, shapes: Any, sizes: Any, starts: Any, points: Any, positions: Tensor, *_: Any
) -> Tensor:
    return value.new_empty((*positions.shape[:2], value.shape[2] * value.shape[3]))


@torch.library.register_fake(add_op_namespace_prefix("ms_deform_attn_backward"))
def _fake_backward(grad_output: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, _, _, _, positions, weights, _, _, requested, _ = others
    tensors = value, positions, weights
    grads = [torch.empty_like(x) if need else x.new_empty(0) for x, need in zip(tensors, requested[:3], strict=True)]
    return *grads, positions.new_empty(0)


torch.library.register_autograd(
    add_op_namespace_prefix("ms_deform_attn_forward"), _backward, setup_context=_setup_context
)
