"""The form "gather": the four pixels around each sample are gathered by their index, for all levels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino.export.attention.samples import sizes_wh


def attend(
    value: Tensor,  # [B, S, M, D], zeros for padding
    shapes: Sequence[tuple[int, int]],  # L (H, W)
    locations: Tensor,  # [B, Q, M, K, 2] float32
    weights: Tensor,  # [B, Q, M, K] float32
    num_points: Sequence[int],  # L
) -> Tensor:
    """Return `ms_deform_attn` of these samples, [B, Q, M * D] float32."""
    rows = torch.tensor([height * width for height, width in shapes], device=value.device)
    sizes = sizes_wh(shapes, value.device)
    return sample(value, sizes, rows.cumsum(0) - rows, locations.unflatten(3, (len(shapes), -1)), weights)


def sample(
    value: Tensor,  # [B, S, M, D]
    sizes: Tensor,  # [L, 2] (W, H) float32
    starts: Tensor,  # [L] int64
    locations: Tensor,  # [B, Q, M, L, P, 2] float32
    weights: Tensor,  # [B, Q, M, K] float32
) -> Tensor:
    """Return `ms_deform_attn` of the same arguments, [B, Q, M * D] float32."""
    batch, rows, heads, channels = value.shape
    x, y = (locations * sizes[:, None] - 0.5).unbind(-1)  # [B, Q, M, L, P]
    left, top = x.floor(), y.floor()
    x_share, y_share = x - left, y - top  # of the right, and of the lower, of two pixels
    width, height = sizes[:, :1], sizes[:, 1:]
    table = value.reshape(-1, channels)  # [B * S * M, D]
    # Indices are integers: float32 is exact for the pixels of a level, but not for the rows of a batch.
    first = torch.arange(batch, device=value.device)[:, None, None, None, None] * rows + starts[:, None]
    head = torch.arange(heads, device=value.device)[:, None, None]
    total: Tensor | None = None
    for right in (0, 1):
        for down in (0, 1):
            column, row = left + right, top + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (x_share if right else 1 - x_share) * (y_share if down else 1 - y_share)
            share = torch.where(inside, share, 0.0).flatten(3) * weights  # [B, Q, M, K]
            pixel = torch.where(inside, row * width + column, 0.0).long()
            index = (first + pixel) * heads + head
            corner = table.index_select(0, index.flatten()).view(*share.shape, channels)
            part = share[..., None, :] @ corner.float()  # [B, Q, M, 1, D]
            total = part if total is None else total + part
    assert total is not None
    return total.squeeze(3).flatten(2)
