"""From backbone features to the levels of the transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Convolution to the transformer's width, then group normalisation."""

    def __init__(self, in_channels: int, hidden_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden_dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.GroupNorm(32, hidden_dim)
        for parameter in self.conv.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Neck(nn.Module):
    """One projection per level: 1x1 for levels of the backbone, 3x3 with stride 2 for each further one.

    The first further level comes from the backbone's last output, not from its projection; later ones from the level
    before.
    """

    def __init__(self, in_channels: Sequence[int], hidden_dim: int, num_levels: int) -> None:
        super().__init__()
        extra = [in_channels[-1]] + [hidden_dim] * num_levels
        self.projections = nn.ModuleList(
            [Projection(channels, hidden_dim, 1, 1) for channels in in_channels]
            + [Projection(channels, hidden_dim, 3, 2) for channels in extra[: num_levels - len(in_channels)]]
        )

    def forward(
        self,
        features: list[Tensor],  # of the backbone, [B, channels, H_l, W_l]
        mask: Tensor,  # [B, H, W] bool, True = padding
    ) -> tuple[list[Tensor], Tensor]:
        """Return maps [B, C, H_l, W_l] of all levels, fine to coarse, and their padding, [B, S] bool."""
        maps: list[Tensor] = []
        sources = [*features, features[-1]]
        for level, projection in enumerate(self.projections):
            maps.append(projection(sources[level] if level < len(sources) else maps[-1]))
        return maps, _levels_of(mask, [m.shape[-2:] for m in maps])


def _levels_of(
    mask: Tensor,  # [B, H, W] bool
    sizes: list[torch.Size],  # (H, W) per level
) -> Tensor:
    """Return the nearest pixels of a mask in the size of each level, [B, S] bool."""
    if not torch.compiler.is_exporting():
        whole = mask[:, None].float()
        return torch.cat([F.interpolate(whole, size).flatten(1) for size in sizes], 1).bool()
    # The same numbers, step by step: engines round their own resizing in other ways, and would take other pixels.
    places = [(_nearest(mask, 1, height), _nearest(mask, 2, width)) for height, width in sizes]
    return torch.cat([mask.index_select(1, rows).index_select(2, columns).flatten(1) for rows, columns in places], 1)


def _nearest(mask: Tensor, dimension: int, count: int) -> Tensor:
    """Return the `count` rows or columns of a mask that resizing takes, int64 [count]."""
    length = mask.shape[dimension]
    sides = torch.tensor([length, count], dtype=torch.float32, device=mask.device)
    places = torch.arange(count, dtype=torch.float32, device=mask.device) * (sides[0] / sides[1])
    return places.floor().long().clamp(max=length - 1)
