"""Argument checks and dtype conversions of the deformable attention ops.

Errors name the argument, the value received, the allowed values and the fix. No tensor's data is read, so nothing
synchronises with a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino_kernels.ops._core.dtypes import FLOATING, compute_dtype

LevelSizes = Tensor | Sequence[tuple[int, int]]
INDEX_DTYPES = (torch.int64, torch.int32)


def shape_error(op: str, name: str, expected: str, tensor: Tensor) -> ValueError:
    """Return the error for a tensor of another shape than expected."""
    return ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")


def check_value(op: str, value: Tensor) -> None:
    """Check the class, shape and dtype of `value`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: value must be a tensor, got {type(value).__name__}")
    if value.dim() != 4:
        raise shape_error(op, "value", "[B, S, M, D]", value)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{op}: value must be float32, float64, bfloat16 or float16, got {value.dtype}. Convert it with .to()"
        )


def check_floating(op: str, name: str, tensor: Tensor, value: Tensor) -> None:
    """Check that a tensor is floating point and on the device of `value`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}. Convert it with .to()")
    check_device(op, name, tensor, value)


def check_device(op: str, name: str, tensor: Tensor, value: Tensor) -> None:
    """Check that a tensor is on the device of `value`."""
    if tensor.device != value.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} and value on {value.device}. Move it with {name}.to(value.device)"
        )


def level_table(
    op: str, value: Tensor, spatial_shapes: LevelSizes, level_start_index: Tensor | None
) -> tuple[Tensor | None, list[int]]:
    """Check the feature levels.

    Returns:
        `(spatial_shapes, [])` for a tensor [L, 2], `(None, [H0, W0, H1, W1, ...])` for a list.
    """
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.shape[0] == 0:
            raise shape_error(op, "spatial_shapes", "[L, 2], rows (H, W), L >= 1", spatial_shapes)
        if spatial_shapes.dtype not in INDEX_DTYPES:
            raise TypeError(f"{op}: spatial_shapes must be int64 or int32, got {spatial_shapes.dtype}")
        if spatial_shapes.device != value.device:
            raise ValueError(
                f"{op}: spatial_shapes is on {spatial_shapes.device} and value on {value.device}. Pass a list "
                "of (H, W), which costs no copy, or move it with spatial_shapes.to(value.device)"
            )
        sizes: list[int] = []
        levels = spatial_shapes.shape[0]
        table = spatial_shapes
    else:
        sizes = _host_sizes(op, spatial_shapes)
        levels = len(sizes) // 2
        table = None
        rows = sum(height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True))
        if level_start_index is None and rows != value.shape[1]:
            raise ValueError(
                f"{op}: value must have S = {rows} rows, the sum of H * W of spatial_shapes {list(spatial_shapes)}, "
                f"got {value.shape[1]}"
            )
    if level_start_index is not None:
        if not isinstance(level_start_index, Tensor):
            raise TypeError(
                f"{op}: level_start_index must be a tensor or None (then it follows from spatial_shapes), "
                f"got {type(level_start_index).__name__}"
            )
        if list(level_start_index.shape) != [levels]:
            raise shape_error(op, "level_start_index", f"[L] = [{levels}]", level_start_index)
        if level_start_index.dtype not in INDEX_DTYPES:
            raise TypeError(f"{op}: level_start_index must be int64 or int32, got {level_start_index.dtype}")
        check_device(op, "level_start_index", level_start_index, value)
    return table, sizes


def _host_sizes(op: str, spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Check a list of (H, W) and return [H0, W0, H1, W1, ...]."""
    sizes: list[int] = []
    try:
        for height, width in spatial_shapes:
            sizes += [height, width]
    except (TypeError, ValueError):
        sizes = []
    if not sizes or any(isinstance(size, (Tensor, float, str)) for size in sizes):
        raise TypeError(
            f"{op}: spatial_shapes must be an integer tensor [L, 2] or a list of (H, W) integers, "
            f"got {spatial_shapes!r}"
        )
    if any(size < 1 for size in sizes):
        raise ValueError(f"{op}: spatial_shapes must be positive, got {list(spatial_shapes)}")
    return sizes


def point_counts(op: str, name: str, samples: Tensor, trailing: int, levels: int, num_points: Sequence[int] | None):
    """Return the points per level, from a [B, Q, M, L, P, ...] tensor or from `num_points` with [B, Q, M, K, ...].

    Args:
        samples: the tensor of samples.
        trailing: number of dimensions after the sample dimensions: 1 for coordinates, 0 for weights.
    """
    if num_points is not None and not _are_integers(num_points):
        raise TypeError(f"{op}: num_points must be {levels} counts, a list of integers, got {num_points!r}")
    grid = "[B, Q, M, L, P, 2]" if trailing else "[B, Q, M, L, P]"
    flat = "[B, Q, M, K, 2]" if trailing else "[B, Q, M, K]"
    if trailing and (samples.dim() == 0 or samples.shape[-1] != 2):
        raise shape_error(op, name, f"{grid}, or {flat} with num_points", samples)
    if samples.dim() == 5 + trailing:
        if samples.shape[3] != levels:
            raise shape_error(op, name, f"{grid} with L = {levels}", samples)
        counts = [samples.shape[4]] * levels
        if num_points is not None and list(num_points) != counts:
            raise ValueError(f"{op}: num_points {list(num_points)} disagrees with {name} {list(samples.shape)}")
        return counts
    if samples.dim() != 4 + trailing:
        raise shape_error(op, name, f"{grid}, or {flat} with num_points", samples)
    if num_points is None:
        raise ValueError(
            f"{op}: {name} is {flat} with K = {samples.shape[3]}, but num_points is None. Pass the number of samples "
            f"of each of the {levels} levels, e.g. num_points=[3, 6, 3]"
        )
    counts = list(num_points)
    if len(counts) != levels or any(count < 0 for count in counts) or sum(counts) != samples.shape[3]:
        raise ValueError(
            f"{op}: num_points must be {levels} counts, one per level, that add up to K = {samples.shape[3]} "
            f"of {name} {list(samples.shape)}, got {counts}"
        )
    return counts


def _are_integers(counts: Sequence[int]) -> bool:
    return isinstance(counts, (list, tuple)) and all(isinstance(count, (int, torch.SymInt)) for count in counts)


def check_sample_tensor(op: str, name: str, tensor: Tensor, batch: int, queries: int | None, heads: int, samples: int):
    """Check that `tensor` is [B, Q, M, K, ...], after flattening its sample dimensions."""
    if list(tensor.shape[:4]) != [batch, tensor.shape[1] if queries is None else queries, heads, samples]:
        raise ValueError(
            f"{op}: {name} must have [B, Q, M, K] = [{batch}, {'Q' if queries is None else queries}, {heads}, "
            f"{samples}] as its sample dimensions (K = L * P or the sum of num_points), got {list(tensor.shape[:4])}"
        )


def flat(samples: Tensor, dimensions: int) -> Tensor:
    """Return samples of `dimensions` dimensions, [B, Q, M, L, P, ...], as [B, Q, M, K, ...]; others unchanged."""
    return samples.flatten(3, 4) if samples.dim() == dimensions else samples


def to_compute_dtype(tensor: Tensor, value: Tensor) -> Tensor:
    """Return positions in the compute dtype."""
    dtype = compute_dtype(value.dtype)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def to_sample_dtype(tensor: Tensor, value: Tensor) -> Tensor:
    """Return weights, offsets or logits in the dtype of `value` if they have it, else in the compute dtype."""
    return tensor if tensor.dtype == value.dtype else tensor.to(compute_dtype(value.dtype))
