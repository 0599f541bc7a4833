"""The form "grid": one GridSample per level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    value: Tensor,  # [B, S, M, D], zeros for padding
    shapes: Sequence[tuple[int, int]],  # L (H, W)
    locations: Tensor,  # [B, Q, M, K, 2] float32
    weights: Tensor,  # [B, Q, M, K] float32
    num_points: Sequence[int],  # L
) -> Tensor:
    """Return `ms_deform_attn` of these samples, [B, Q, M * D] float32."""
    batch, _, heads, channels = value.shape
    queries, samples = weights.shape[1], weights.shape[3]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).split(list(num_points), 2)  # [B * M, Q, P, 2]
    levels = value.float().permute(0, 2, 3, 1).reshape(batch * heads, channels, -1)
    levels = levels.split([height * width for height, width in shapes], 2)
    sampled = [
        F.grid_sample(level.unflatten(2, shape), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        for level, grid, shape in zip(levels, grids, shapes, strict=True)
    ]
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, samples)
    output = (torch.cat(sampled, -1) * weights).sum(-1)  # [B * M, D, Q]
    return output.view(batch, heads * channels, queries).transpose(1, 2)
