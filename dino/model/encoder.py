"""Deformable encoder: every pixel of every level attends to a few samples of all levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino.model.config import ModelConfig
from dino.model.layers import FeedForward, recompute
from dino.model.position import image_position
from dino_kernels.nn import MSDeformAttn


@dataclass(frozen=True)
class Levels:
    """Geometry of the feature levels, whose tokens follow each other from fine to coarse, row by row."""

    padding: Tensor  # [B, S] bool, True = padding
    spatial_shapes: tuple[tuple[int, int], ...]  # (H, W) per level
    valid_ratios: Tensor  # [B, L, 2] share of the width and height that is image, float32
    valid_sizes: Tensor  # [B, L, 2] the same in pixels of the level (W, H)


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
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, config.hidden_dim))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))

    def forward(
        self,
        maps: list[Tensor],  # [B, C, H_l, W_l]
        masks: list[Tensor],  # [B, H_l, W_l] bool, True = padding
    ) -> Memory:
        """Return the encoded tokens of all levels."""
        tokens, levels = flatten_levels(maps, masks)
        channels = tokens.shape[-1]
        position = torch.cat(
            [
                image_position(mask, channels).flatten(1, 2) + embed.float()
                for mask, embed in zip(masks, self.level_embed, strict=True)
            ],
            1,
        ).to(tokens.dtype)
        reference_points = encoder_reference_points(levels)
        for layer in self.layers:
            inputs = (tokens, position, reference_points, levels)
            tokens = recompute(layer, *inputs) if self.gradient_checkpointing else layer(*inputs)
        return Memory(tokens, levels)


def flatten_levels(maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Levels]:
    """Return the tokens of all levels in one sequence [B, S, C], and where they come from."""
    # An image fills the top left corner of its batch, so its first row and column give its size.
    sizes = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    ratios = [
        torch.stack([size[:, 0] / width, size[:, 1] / height], -1)
        for size, (height, width) in zip(sizes.float().unbind(1), shapes, strict=True)
    ]
    levels = Levels(torch.cat([m.flatten(1) for m in masks], 1), shapes, torch.stack(ratios, 1), sizes)
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), levels


def pixel_centers(levels: Levels) -> list[Tensor]:
    """Return each pixel's centre (x, y) in 0..1 of the valid part of its image, per level [B, H_l * W_l, 2]."""
    centers = []
    for (height, width), size in zip(levels.spatial_shapes, levels.valid_sizes.unbind(1), strict=True):
        y = torch.arange(height, dtype=torch.float32, device=size.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=size.device) + 0.5
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        centers.append(grid / size[:, None])
    return centers


def encoder_reference_points(levels: Levels) -> Tensor:
    """Return each pixel's centre in 0..1 of every level's padded map, [B, S, L, 2]."""
    return torch.cat(pixel_centers(levels), 1)[:, :, None] * levels.valid_ratios[:, None]
