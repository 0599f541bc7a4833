"""The definition of `ms_deform_attn`, in plain PyTorch: one `grid_sample` per level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_kernels.ops._core.arguments import MSDeformAttnArguments as Arguments
from dino_kernels.ops._core.dtypes import compute_dtype


def forward(arguments: Arguments) -> Tensor:
    """Return the weighted sum of samples, [B, Q, M * D]; see `dino_kernels.ms_deform_attn`.

    Synchronises with a GPU if `spatial_shapes` is a tensor there, because `grid_sample` needs the sizes on the host;
    the kernels do not. Differentiable any number of times.
    """
    value, spatial_shapes, level_sizes, level_start_index, num_points, sampling_locations, weights = arguments
    dtype = value.dtype
    compute = compute_dtype(dtype)
    value = value.to(compute)
    batch, _, heads, channels = value.shape
    queries, samples = sampling_locations.shape[1], sampling_locations.shape[3]
    shapes = host_shapes(spatial_shapes, level_sizes)
    levels = split_levels(value, shapes, level_start_index)
    # A sample outside [-1, 2] is outside a level of any size, so clamping changes no finite result. It makes
    # infinities and NaN contribute nothing, as in the original kernel; grid_sample alone returns NaN for some.
    grids = 2 * sampling_locations.nan_to_num(nan=-1.0).clamp(-1, 2) - 1
    grids = grids.transpose(1, 2).flatten(0, 1)  # [B * M, Q, K, 2]
    sampled = []
    for (height, width), level, grid in zip(shapes, levels, grids.split(num_points, dim=2), strict=True):
        level = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled.append(F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.to(compute).transpose(1, 2).reshape(batch * heads, 1, queries, samples)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [B * M, D, Q]
    return output.view(batch, heads * channels, queries).transpose(1, 2).to(dtype).contiguous()


def host_shapes(spatial_shapes: Tensor | None, level_sizes: list[int]) -> list[tuple[int, int]]:
    """Return (H, W) of each level, from the one argument that has them."""
    if spatial_shapes is not None:
        return [(height, width) for height, width in spatial_shapes.tolist()]
    return list(zip(level_sizes[::2], level_sizes[1::2], strict=True))


def split_levels(value: Tensor, shapes: list[tuple[int, int]], level_start_index: Tensor | None) -> list[Tensor]:
    """Return the rows of each level, L tensors [B, H * W, M, D]."""
    sizes = [height * width for height, width in shapes]
    packed = [sum(sizes[:level]) for level in range(len(sizes))]
    starts = packed if level_start_index is None else level_start_index.tolist()
    if starts == packed and sum(sizes) == value.shape[1]:
        return list(value.split(sizes, dim=1))  # its backward is one concatenation, not a sum of padded slices
    return [value[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
