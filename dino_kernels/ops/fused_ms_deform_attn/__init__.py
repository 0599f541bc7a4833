"""Multi-scale deformable attention from raw offsets and logits: the query side is fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dino_kernels.ops import _attention as check
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.eager import EagerOp
from dino_kernels.ops._core.registration import define, no_double_backward
from dino_kernels.ops.fused_ms_deform_attn import cpu, cuda, reference, triton

OP = "fused_ms_deform_attn"


class Arguments(NamedTuple):
    """The arguments as the op and its backends see them: checked, dtypes settled, samples flattened.

    Calls past the registered op leave the sample dimensions K as they were given, as K or as L, P.
    """

    value: Tensor  # [B, S, M, D]
    spatial_shapes: Tensor | None  # [L, 2] (H, W), or None where level_sizes has them
    level_sizes: list[int]  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None  # [L]; None means the exclusive cumulative sum of H * W
    num_points: list[int]  # [L], sum is K
    reference_points: Tensor  # [B, Q, L, 2] (x, y) or [B, Q, L, 4] (cx, cy, w, h), in [0, 1]
    sampling_offsets: Tensor  # [B, Q, M, K, 2], (x, y) in pixels or in units of the box
    attention_logits: Tensor  # [B, Q, M, K]
    value_mask: Tensor | None  # [B, S] bool, True = padding


def prepare(
    value: Tensor,
    spatial_shapes: check.LevelSizes,
    level_start_index: Tensor | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    value_mask: Tensor | None = None,
    *,
    num_points: Sequence[int] | None = None,
) -> Arguments:
    check.check_value(OP, value)
    table, sizes = check.level_table(OP, value, spatial_shapes, level_start_index)
    levels = len(sizes) // 2 if table is None else table.shape[0]
    check.check_floating(OP, "sampling_offsets", sampling_offsets, value)
    check.check_floating(OP, "attention_logits", attention_logits, value)
    check.check_floating(OP, "reference_points", reference_points, value)
    counts = check.point_counts(OP, "sampling_offsets", sampling_offsets, 1, levels, num_points)
    # Logits often come as [B, Q, M, L * P], straight from the projection.
    check.point_counts(OP, "attention_logits", attention_logits, 0, levels, counts)
    offsets, logits = check.flat(sampling_offsets, 6), check.flat(attention_logits, 5)
    batch, rows, heads, _ = value.shape
    check.check_sample_tensor(OP, "sampling_offsets", offsets, batch, None, heads, sum(counts))
    queries = offsets.shape[1]
    check.check_sample_tensor(OP, "attention_logits", logits, batch, queries, heads, sum(counts))
    if (
        reference_points.dim() != 4
        or reference_points.shape[0] != batch
        or reference_points.shape[1] != queries
        or reference_points.shape[2] not in (1, levels)
        or reference_points.shape[3] not in (2, 4)
    ):
        expected = f"[B, Q, L or 1, 2 or 4] = [{batch}, {queries}, {levels} or 1, 2 or 4]"
        raise check.shape_error(OP, "reference_points", expected, reference_points)
    if value_mask is not None:
        if not isinstance(value_mask, Tensor):
            raise TypeError(f"{OP}: value_mask must be a tensor or None, got {type(value_mask).__name__}")
        if list(value_mask.shape) != [batch, rows]:
            raise check.shape_error(OP, "value_mask", f"[B, S] = [{batch}, {rows}]", value_mask)
        if value_mask.dtype != torch.bool:
            raise TypeError(f"{OP}: value_mask must be bool, True = padding, got {value_mask.dtype}")
        check.check_device(OP, "value_mask", value_mask, value)
    return settle(value, table, sizes, level_start_index, counts, reference_points, offsets, logits, value_mask)


def settle(
    value: Tensor,
    spatial_shapes: Tensor | None,
    level_sizes: list[int],
    level_start_index: Tensor | None,
    num_points: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    value_mask: Tensor | None,
) -> Arguments:
    """Give samples the dtypes, and reference points the levels, that backends take."""
    offsets = check.to_sample_dtype(sampling_offsets, value)
    logits = check.to_sample_dtype(attention_logits, value)
    if offsets.dtype != logits.dtype:
        offsets, logits = check.to_compute_dtype(offsets, value), check.to_compute_dtype(logits, value)
    reference_points = check.to_compute_dtype(reference_points, value)
    if reference_points.shape[2] != len(num_points):
        reference_points = reference_points.expand(-1, -1, len(num_points), -1)
    return Arguments(
        value,
        spatial_shapes,
        level_sizes,
        level_start_index,
        num_points,
        reference_points,
        offsets,
        logits,
        value_mask,
    )


backends = Backends(OP, prepare, cuda=cuda, triton=triton, cpu=cpu, reference=reference)


def fused_ms_deform_attn(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: check.LevelSizes,  # [L, 2] (H, W)
    level_start_index: Tensor | None,  # [L]
    reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, P, 2] or [B, Q, M, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L, P] or [B, Q, M, K]
    value_mask: Tensor | None = None,  # [B, S]
    *,
    num_points: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Multi-scale deformable attention from raw offsets and logits, in one kernel.

    Computes `ms_deform_attn(value, ..., locations, weights)` with `weights` the softmax of
    `attention_logits` over all K = L * P samples of a head, and `locations` (Deformable DETR,
    arXiv 2010.04159, section A.3):

    - 2-coordinate references: `reference + offset / (W, H)`: offsets are in pixels of the level;
    - 4-coordinate references: `(cx, cy) + offset / P * (w, h) / 2`: offsets are in box halves over P,
      the number of points of that level.

    Neither tensor is written to memory, and the backward saves nothing but these inputs.

    Args:
        value: features of all levels, concatenated along S. float32, float64, bfloat16 or float16.
        spatial_shapes: (H, W) of each level: an int32 or int64 tensor on `value`'s device, or a list.
        level_start_index: first row of each level in S; None computes it from `spatial_shapes`.
        reference_points: in [0, 1] of the image; a level dimension of 1 serves all levels. Used in
            float32 (float64 for float64 values), never in 16 bit.
        sampling_offsets: raw output of the offset projection.
        attention_logits: raw output of the attention projection.
        value_mask: bool, True where a row of `value` is padding; such rows count as zero.
        num_points: points of each level where they differ; the sample dimensions are then one of
            size K = sum(num_points), level by level.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        [B, Q, M * D], in `value`'s dtype; heads are adjacent blocks of D channels.

    Raises:
        ValueError, TypeError: a malformed argument, named.
        UnsupportedError: no backend can run the call, or not the requested one.
    """
    given = (
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
        value_mask,
    )
    return _eager_op(given, num_points, backend)


def _kernel(*arguments: Any) -> Tensor:
    *inputs, backend = arguments
    return backends[backend].forward(*inputs)


def _fake(value: Tensor, *rest: Any) -> Tensor:
    offsets = rest[5]
    return value.new_empty((offsets.shape[0], offsets.shape[1], value.shape[2] * value.shape[3]))


def _backward_kernel(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, wanted, backend = arguments
    return backends[backend].backward(grad_output, *inputs, wanted)


def _backward_fake(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    value, _, _, _, _, reference_points, offsets, logits, _, wanted, _ = arguments
    inputs = (value, reference_points, offsets, logits)
    return tuple(x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))


_INPUTS = (
    "Tensor value, Tensor? spatial_shapes, SymInt[] level_sizes, Tensor? level_start_index, int[] num_points, "
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, Tensor? value_mask"
)
_backward_op = define(
    f"{OP}_backward(Tensor grad_output, {_INPUTS}, bool[] wanted, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
    backward=no_double_backward(OP),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, level_sizes, level_start_index, num_points, *samples, value_mask, backend = inputs
    ctx.save_for_backward(value, spatial_shapes, level_start_index, *samples, value_mask)
    ctx.level_sizes, ctx.num_points, ctx.backend = level_sizes, num_points, backend


def _backward(ctx: Any, grad_output: Tensor, gradients: Callable[..., Any] = _backward_op) -> tuple[Tensor | None, ...]:
    value, spatial_shapes, level_start_index, *samples, value_mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[5], needs[6], needs[7]]
    grads = gradients(
        grad_output,
        value,
        spatial_shapes,
        ctx.level_sizes,
        level_start_index,
        ctx.num_points,
        *samples,
        value_mask,
        wanted,
        ctx.backend,
    )
    grad_value, *grad_samples = [g if want else None for g, want in zip(grads, wanted, strict=True)]
    return grad_value, None, None, None, None, *grad_samples, None, None


_op = define(
    f"{OP}({_INPUTS}, str backend) -> Tensor", _kernel, _fake, setup_context=_setup_context, backward=_backward
)
_eager_op = EagerOp(backends, settle, _op, _setup_context, _backward)
