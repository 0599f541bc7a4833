"""Multi-scale deformable attention at given sampling locations and attention weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dino_kernels.ops import _attention as check
from dino_kernels.ops._core.arguments import MSDeformAttnArguments as Arguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_differentiable
from dino_kernels.ops.ms_deform_attn import native, reference, triton

OP = "ms_deform_attn"


def prepare(
    value: Tensor,
    spatial_shapes: check.LevelSizes,
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    num_points: Sequence[int] | None = None,
) -> Arguments:
    """Check the arguments and return them in the form that backends take."""
    check.check_value(OP, value)
    table, sizes = check.level_table(OP, value, spatial_shapes, level_start_index)
    levels = len(sizes) // 2 if table is None else table.shape[0]
    check.check_floating(OP, "sampling_locations", sampling_locations, value)
    check.check_floating(OP, "attention_weights", attention_weights, value)
    counts = check.point_counts(OP, "sampling_locations", sampling_locations, 1, levels, num_points)
    check.point_counts(OP, "attention_weights", attention_weights, 0, levels, counts)
    locations, weights = check.flat(sampling_locations, 6), check.flat(attention_weights, 5)
    batch, _, heads, _ = value.shape
    check.check_sample_tensor(OP, "sampling_locations", locations, batch, None, heads, sum(counts))
    check.check_sample_tensor(OP, "attention_weights", weights, batch, locations.shape[1], heads, sum(counts))
    return convert(Arguments(value, table, sizes, level_start_index, counts, locations, weights))


def convert(given: Arguments) -> Arguments:
    """Convert samples to the dtypes that backends take."""
    value, *_, locations, weights = given
    return Arguments(*given[:5], check.to_compute_dtype(locations, value), check.to_sample_dtype(weights, value))


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


def ms_deform_attn(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: check.LevelSizes,  # [L, 2] (H, W)
    level_start_index: Tensor | None,  # [L]
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2] or [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P] or [B, Q, M, K]
    *,
    num_points: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3).

    `output[b, q, m] = sum over levels l and points p of attention_weights[b, q, m, l, p] *
    bilinear(value of level l, sampling_locations[b, q, m, l, p])`. Equal to `grid_sample` of each
    level with `align_corners=False, padding_mode="zeros"`, weighted and summed. Locations that are NaN,
    infinite or outside the level contribute nothing.

    Args:
        value: features of all levels, concatenated along S. float32, float64, bfloat16 or float16.
        spatial_shapes: (H, W) of each level: an int32 or int64 tensor on `value`'s device, or a list.
            S is the sum of H * W.
        level_start_index: first row of each level in S; None computes it from `spatial_shapes`.
        sampling_locations: (x, y), with (0, 0) the top left and (1, 1) the bottom right corner of the
            level. Used in float32 (float64 for float64 values), never in 16 bit.
        attention_weights: weight of each sample, usually a softmax over L * P.
        num_points: points of each level if they differ; the sample dimensions are then one of size
            K = sum(num_points), level by level.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        [B, Q, M * D], in `value`'s dtype; heads are adjacent blocks of D channels.

    Raises:
        ValueError, TypeError: an argument is malformed.
        UnsupportedError: no backend, or not the requested one, can run the call.
    """
    given = value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    return _op(given, num_points, backend)


_op = define_differentiable(
    backends,
    Arguments,
    "Tensor value, Tensor? spatial_shapes, SymInt[] level_sizes, Tensor? level_start_index, int[] num_points, "
    "Tensor sampling_locations, Tensor attention_weights",
    fake=lambda a: a.value.new_empty((*a.sampling_locations.shape[:2], a.value.shape[2] * a.value.shape[3])),
    differentiable=("value", "sampling_locations", "attention_weights"),
    convert=convert,
)
