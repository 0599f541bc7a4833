"""Deformable encoder: every pixel of every level attends to a few samples of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino.model.config import ModelConfig
from dino.model.foreach import foreach_div
from dino.model.layers import FeedForward, recompute
from dino.model.position import image_position, pixel_counts
from dino.model.successors.memory_fusion import MemoryFusion
from dino_kernels.nn import MSDeformAttn


@dataclass(frozen=True)
class Levels:
    """Geometry of the feature levels, whose tokens follow each other from fine to coarse, row by row."""

    padding: Tensor  # [B, S] bool, True = padding
    spatial_shapes: tuple[tuple[int, int], ...]  # (H, W) per level
    valid_ratios: Tensor  # [B, L, 2] share of the width and height that is image, float32
    centers: Tensor  # [B, S, 2] each pixel's centre (x, y) in 0..1 of the valid part of its image
    rows: list[Tensor]  # per level [B, H, W], of `pixel_counts`
    columns: list[Tensor]


@dataclass(frozen=True)
class Memory:
    """Output of the encoder, to which the decoder attends."""

    tokens: Tensor  # [B, S, C]
    levels: Levels


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each added and normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(config.hidden_dim, config.num_levels, config.num_heads, config.num_points)
        self.attention_norm = nn.LayerNorm(config.hidden_dim)
        self.ffn = FeedForward(config.hidden_dim, config.ffn_dim)

    def forward(self, tokens: Tensor, position: Tensor, reference_points: Tensor, levels: Levels) -> Tensor:
        query = tokens + position
        attended = self.self_attn(query, reference_points, tokens, levels.spatial_shapes, None, levels.padding)
        return self.ffn(self.attention_norm(tokens + attended))


class Encoder(nn.Module):
    """Deformable encoder. Padding tokens still act as queries; only their values are masked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = config.gradient_checkpointing
        self.position = {"temperature": config.position_temperature, "offset": config.position_offset}
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, config.hidden_dim))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.fusion = MemoryFusion(config.hidden_dim, config.num_encoder_layers) if config.memory_fusion else None

    def forward(
        self,
        maps: list[Tensor],  # [B, C, H_l, W_l]
        padding: Tensor,  # [B, S] bool, True = padding
    ) -> Memory:
        """Return the encoded tokens of all levels."""
        tokens, levels = flatten_levels(maps, padding)
        position = image_position(levels.rows, levels.columns, tokens.shape[-1], **self.position)
        of_level = zip(self.level_embed.float(), levels.spatial_shapes, strict=True)
        position = position + torch.cat([embed.expand(height * width, -1) for embed, (height, width) in of_level])
        position = position.to(tokens.dtype)
        reference_points = encoder_reference_points(levels)
        all_tokens = [tokens]
        for layer in self.layers:
            inputs = (tokens, position, reference_points, levels)
            tokens = recompute(layer, *inputs) if self.gradient_checkpointing else layer(*inputs)
            if self.fusion is not None:
                all_tokens.append(tokens)
        return Memory(tokens if self.fusion is None else self.fusion(all_tokens), levels)


def flatten_levels(maps: list[Tensor], padding: Tensor) -> tuple[Tensor, Levels]:
    """Return the tokens of all levels in one sequence [B, S, C], and where they come from."""
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    rows, columns = pixel_counts(padding, shapes)
    # An image fills the top left corner of its batch, so its first row and column have its size.
    ends = [end for row, column in zip(rows, columns, strict=True) for end in (column[:, 0, -1], row[:, -1, 0])]
    shares = foreach_div(ends, [torch.sym_float(side) for height, width in shapes for side in (width, height)])
    sizes, ratios = (torch.stack(each, 1).unflatten(1, (-1, 2)) for each in (ends, shares))
    levels = Levels(
        padding=padding,
        spatial_shapes=shapes,
        valid_ratios=ratios,
        centers=torch.cat(foreach_div(pixel_centers(shapes, sizes.device), sizes[:, :, None].unbind(1)), 1),
        rows=rows,
        columns=columns,
    )
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), levels


def pixel_centers(shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Return the centre (x, y) of each pixel of a level, in pixels; per level [H * W, 2] float32."""
    line = torch.arange(0.5, max(map(max, shapes)), dtype=torch.float32, device=device)
    grids = [(line[:width].expand(height, -1), line[:height, None].expand(-1, width)) for height, width in shapes]
    return [torch.stack(grid, -1).flatten(0, 1) for grid in grids]


def encoder_reference_points(levels: Levels) -> Tensor:
    """Return each pixel's centre in 0..1 of every level's padded map, [B, S, L, 2]."""
    return levels.centers[:, :, None] * levels.valid_ratios[:, None]
