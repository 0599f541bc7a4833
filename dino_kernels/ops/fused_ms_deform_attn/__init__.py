"""Multi-scale deformable attention from raw offsets and logits: locations and softmax are fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino_kernels.ops import _attention as check
from dino_kernels.ops._core.arguments import FusedMSDeformAttnArguments as Arguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_differentiable
from dino_kernels.ops.fused_ms_deform_attn import native, reference, triton

OP = "fused_ms_deform_attn"


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
    """Check the arguments and return them in the form that backends take."""
    check.check_value(OP, value)
    table, sizes = check.level_table(OP, value, spatial_shapes, level_start_index)
    levels = len(sizes) // 2 if table is None else table.shape[0]
    check.check_floating(OP, "sampling_offsets", sampling_offsets, value)
    check.check_floating(OP, "attention_logits", attention_logits, value)
    check.check_floating(OP, "reference_points", reference_points, value)
    counts = check.point_counts(OP, "sampling_offsets", sampling_offsets, 1, levels, num_points)
    # Logits are often [B, Q, M, L * P], directly from the projection.
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
    samples = reference_points, offsets, logits, value_mask
    return convert(Arguments(value, table, sizes, level_start_index, counts, *samples))


def convert(given: Arguments) -> Arguments:
    """Convert samples to the dtypes, and expand reference points to the levels, that backends take."""
    value, *_, reference_points, offsets, logits, value_mask = given
    offsets, logits = check.to_sample_dtype(offsets, value), check.to_sample_dtype(logits, value)
    if offsets.dtype != logits.dtype:
        offsets, logits = check.to_compute_dtype(offsets, value), check.to_compute_dtype(logits, value)
    reference_points = check.to_compute_dtype(reference_points, value)
    if reference_points.shape[2] != len(given.num_points):
        reference_points = reference_points.expand(-1, -1, len(given.num_points), -1)
    return Arguments(*given[:5], reference_points, offsets, logits, value_mask)


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


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
    """Compute multi-scale deformable attention from raw offsets and logits, in one kernel.

    Computes `ms_deform_attn(value, ..., locations, weights)` with `weights` the softmax of
    `attention_logits` over all K = L * P samples of a head, and `locations` (Deformable DETR,
    arXiv 2010.04159, section A.3):

    - 2-coordinate references: `reference + offset / (W, H)`: offsets are in pixels of the level;
    - 4-coordinate references: `(cx, cy) + offset / P * (w, h) / 2`: offsets are in box halves over P,
      the number of points of that level.

    Neither tensor is written to memory, and the backward saves only these inputs.

    Args:
        value: features of all levels, concatenated along S. float32, float64, bfloat16 or float16.
        spatial_shapes: (H, W) of each level: an int32 or int64 tensor on `value`'s device, or a list.
        level_start_index: first row of each level in S; None computes it from `spatial_shapes`.
        reference_points: in [0, 1] of the image; a level dimension of 1 serves all levels. Used in
            float32 (float64 for float64 values), never in 16 bit.
        sampling_offsets: raw output of the offset projection.
        attention_logits: raw output of the attention projection.
        value_mask: bool, True where a row of `value` is padding; such rows count as zero.
        num_points: points of each level if they differ; the sample dimensions are then one of size
            K = sum(num_points), level by level.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        [B, Q, M * D], in `value`'s dtype; heads are adjacent blocks of D channels.

    Raises:
        ValueError, TypeError: an argument is malformed.
        UnsupportedError: no backend, or not the requested one, can run the call.
    """
    samples = reference_points, sampling_offsets, attention_logits, value_mask
    return _op((value, spatial_shapes, level_start_index, *samples), num_points, backend)


_op = define_differentiable(
    backends,
    Arguments,
    "Tensor value, Tensor? spatial_shapes, SymInt[] level_sizes, Tensor? level_start_index, int[] num_points, "
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, Tensor? value_mask",
    fake=lambda a: a.value.new_empty((*a.sampling_offsets.shape[:2], a.value.shape[2] * a.value.shape[3])),
    differentiable=("value", "reference_points", "sampling_offsets", "attention_logits"),
    convert=convert,
)
