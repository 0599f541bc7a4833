"""Deformable encoder: every pixel of every level looks at a few samples of all levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino.model.config import ModelConfig
from dino.model.layers import FeedForward
from dino.model.position import image_position
from dino_kernels.nn import MSDeformAttn


@dataclass
class Memory:
    """The encoder's tokens, levels one after the other from fine to coarse, row by row."""

    tokens: Tensor  # [B, S, C]
    padding: Tensor  # [B, S] bool, True = padding
    spatial_shapes: list[tuple[int, int]]  # (H, W) per level
    valid_ratios: Tensor  # [B, L, 2] share of the width and height that is image, float32
    valid_sizes: Tensor  # [B, L, 2] the same in pixels of the level (W, H)


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each added and normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(config.hidden_dim, config.num_levels, config.num_heads, config.num_points)
        self.attention_norm = nn.LayerNorm(config.hidden_dim)
        self.ffn = FeedForward(config.hidden_dim, config.ffn_dim)

    def forward(self, tokens: Tensor, position: Tensor, reference_points: Tensor, memory: Memory) -> Tensor:
        query = tokens + position
        attended = self.self_attn(query, reference_points, tokens, memory.spatial_shapes, None, memory.padding)
        return self.ffn(self.attention_norm(tokens + attended))


class Encoder(nn.Module):
    """Deformable encoder. Padded tokens ask as queries like any other; only their values are masked."""

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
        """The encoded tokens of all levels."""
        memory = flatten_levels(maps, masks)
        channels = maps[0].shape[1]
        position = torch.cat(
            [
                image_position(mask, channels).flatten(1, 2) + embed.float()
                for mask, embed in zip(masks, self.level_embed, strict=True)
            ],
            1,
        ).to(memory.tokens.dtype)
        reference_points = encoder_reference_points(memory)
        for layer in self.layers:
            arguments = (memory.tokens, position, reference_points, memory)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                memory.tokens = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                memory.tokens = layer(*arguments)
        return memory


def flatten_levels(maps: list[Tensor], masks: list[Tensor]) -> Memory:
    """Tokens of all levels in one sequence, with what is needed to find them again."""
    # An image fills the top left corner of its batch, so its first row and column tell its size.
    sizes = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
    shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
    full = torch.tensor([(width, height) for height, width in shapes], device=sizes.device)
    return Memory(
        tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1),
        padding=torch.cat([m.flatten(1) for m in masks], 1),
        spatial_shapes=shapes,
        valid_ratios=sizes.float() / full,
        valid_sizes=sizes,
    )


def pixel_centers(memory: Memory) -> list[Tensor]:
    """Per level [B, H_l * W_l, 2]: each pixel's centre (x, y), in 0..1 of the valid part of its image."""
    centers = []
    for (height, width), size in zip(memory.spatial_shapes, memory.valid_sizes.unbind(1), strict=True):
        y = torch.arange(height, dtype=torch.float32, device=size.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=size.device) + 0.5
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        centers.append(grid / size[:, None])
    return centers


def encoder_reference_points(memory: Memory) -> Tensor:
    """[B, S, L, 2]: each pixel's centre, in 0..1 of every level's padded map."""
    return torch.cat(pixel_centers(memory), 1)[:, :, None] * memory.valid_ratios[:, None]
