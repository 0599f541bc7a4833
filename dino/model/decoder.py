"""Decoder: queries look at each other and at the image, and their boxes are refined layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.model.config import ModelConfig
from dino.model.encoder import Memory
from dino.model.layers import MLP, FeedForward
from dino.model.look_forward import refine
from dino.model.position import box_position
from dino_kernels.nn import MSDeformAttn


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the image, feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.self_attn = nn.MultiheadAttention(channels, config.num_heads, batch_first=True)
        self.self_attn_norm = nn.LayerNorm(channels)
        self.cross_attn = MSDeformAttn(channels, config.num_levels, config.num_heads, config.num_points)
        self.cross_attn_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, config.ffn_dim)

    def forward(
        self,
        states: Tensor,  # [B, Q, C]
        position: Tensor,  # [B, Q, C]
        reference_boxes: Tensor,  # [B, Q, L, 4] cxcywh in 0..1 of each level's padded map
        memory: Memory,
        blocked: Tensor | None,  # [Q, Q] bool, True = row may not look at column
    ) -> Tensor:
        query = states + position
        attended, _ = self.self_attn(query, query, states, attn_mask=blocked, need_weights=False)
        states = self.self_attn_norm(states + attended)
        attended = self.cross_attn(
            states + position, reference_boxes, memory.tokens, memory.spatial_shapes, None, memory.padding
        )
        return self.ffn(self.cross_attn_norm(states + attended))


class Decoder(nn.Module):
    """Decoder layers that share one box head and one class head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.query_position = MLP(2 * channels, channels, channels, 2)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(channels)
        self.class_head = nn.Linear(channels, config.num_classes)
        self.box_head = MLP(channels, channels, 4, 3)

    def forward(
        self,
        content: Tensor,  # [B, Q, C]
        anchors: Tensor,  # [B, Q, 4] logits of cxcywh
        memory: Memory,
        blocked: Tensor | None = None,  # [Q, Q] bool, True = row may not look at column
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Returns:
            Normalised states [layers, B, Q, C], and the boxes that each layer started from [layers, B, Q, 4] cxcywh
            in 0..1. The latter carry the gradient of the layer before, for `look_forward_twice`.
        """
        scale = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        states = content
        reference = anchors.sigmoid()
        all_states, references = [], []
        for layer in self.layers:
            references.append(reference)
            # What a layer looks at is a constant, or gradients would run through all layers' boxes.
            constant = reference.detach() if references[1:] else reference
            boxes = constant[:, :, None] * scale
            position = self.query_position(box_position(boxes[:, :, 0], content.shape[-1]).to(states.dtype))
            states = layer(states, position, boxes, memory, blocked)
            reference = refine(self.box_head, states, constant)
            all_states.append(self.norm(states))
        return torch.stack(all_states), torch.stack(references)
