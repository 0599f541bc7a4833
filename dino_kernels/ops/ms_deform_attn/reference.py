"""The definition of `ms_deform_attn`, in plain PyTorch: one `grid_sample` per level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unsupported(*arguments: object) -> str | None:
    return None


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | None,  # [L, 2]
    level_sizes: list[int],  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None,  # [L]
    num_points: list[int],  # [L]
    sampling_locations: Tensor,  # [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, K]
) -> Tensor:
    """The value-weighted sum of samples, [B, Q, M * D]; see `dino_kernels.ms_deform_attn`.

    A table of levels on a GPU is read once, which waits for the device: `grid_sample` needs its
    numbers on the host. The kernels do not. Differentiable any number of times.
    """
    dtype = value.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    value = value.to(compute)
    batch, _, heads, channels = value.shape
    queries, samples = sampling_locations.shape[1], sampling_locations.shape[3]
    shapes = host_shapes(spatial_shapes, level_sizes)
    levels = split_levels(value, shapes, level_start_index)
    # Outside [-1, 2] a sample is outside the level whatever its size, so this changes no finite result;
    # it makes infinities and NaN contribute nothing, as in the original kernel, where grid_sample alone
    # would return NaN for some.
    grids = 2 * sampling_locations.nan_to_num(nan=-1.0).clamp(-1, 2) - 1
    grids = grids.transpose(1, 2).flatten(0, 1)  # [B * M, Q, K, 2]
    sampled = []
    for (height, width), level, grid in zip(shapes, levels, grids.split(num_points, dim=2), strict=True):
        level = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled.append(F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(compute).transpose(1, 2).reshape(batch * heads, 1, queries, samples)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [B * M, D, Q]
    return output.view(batch, heads * channels, queries).transpose(1, 2).to(dtype).contiguous()


def host_shapes(spatial_shapes: Tensor | None, level_sizes: list[int]) -> list[tuple[int, int]]:
    if spatial_shapes is not None:
        return [(height, width) for height, width in spatial_shapes.tolist()]
    return list(zip(level_sizes[::2], level_sizes[1::2], strict=True))


def split_levels(value: Tensor, shapes: list[tuple[int, int]], level_start_index: Tensor | None) -> list[Tensor]:
    """The rows of each level, L tensors [B, H * W, M, D]."""
    sizes = [height * width for height, width in shapes]
    packed = [sum(sizes[:level]) for level in range(len(sizes))]
    starts = packed if level_start_index is None else level_start_index.tolist()
    if starts == packed and sum(sizes) == value.shape[1]:
        return list(value.split(sizes, dim=1))  # whose backward is one concatenation, not a sum of padded slices
    return [value[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
