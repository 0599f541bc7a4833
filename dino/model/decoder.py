"""Decoder: queries attend to each other and to the image, and each layer refines their boxes (paper, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.model.boxes import inverse_sigmoid
from dino.model.config import ModelConfig
from dino.model.encoder import Memory
from dino.model.layers import MLP, FeedForward, HeadPerLayer, self_attention
from dino.model.position import BOX_TEMPERATURE, box_position, wavelengths
from dino.model.successors.multi_route import RouteLayer
from dino.model.successors.relation_bias import RelationBias
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
        attention_mask: Tensor | None,  # [Q, Q] or [B, M, Q, Q], added to the logits of self-attention
        route: RouteLayer | None = None,
    ) -> Tensor:
        further, norm, ffn = None, self.self_attn_norm, self.ffn
        if route is not None:
            further, norm, ffn = route.parts(norm, ffn)
        attended = self_attention(self.self_attn, states + position, states, attention_mask, further)
        states = norm(states + attended)
        shapes, padding = memory.levels.spatial_shapes, memory.levels.padding
        attended = self.cross_attn(states + position, reference_boxes, memory.tokens, shapes, None, padding)
        return ffn(self.cross_attn_norm(states + attended))


class Decoder(nn.Module):
    """Decoder layers that share one box head and one class head, unless `shared_heads` is False."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.query_position = MLP(2 * channels, channels, channels, 2)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(channels)
        heads = range(1 if config.shared_heads else config.num_decoder_layers)
        class_heads = [nn.Linear(channels, config.num_classes) for _ in heads]
        box_heads = [MLP(channels, channels, 4, 3) for _ in heads]
        self.class_head = class_heads[0] if config.shared_heads else HeadPerLayer(class_heads)
        self.box_head = box_heads[0] if config.shared_heads else HeadPerLayer(box_heads)
        self.relation = RelationBias(config.num_heads) if config.relation_bias else None

    def forward(
        self,
        content: Tensor,  # [B, Q, C]
        anchors: Tensor,  # [B, Q, 4] logits of cxcywh
        memory: Memory,
        blocked: Tensor | None = None,  # [Q, Q] bool, True = the row may not attend to the column
        *,
        related: bool = True,
        route: nn.ModuleList | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            content, anchors, memory, blocked: the queries, what they attend to, and what they may not attend to.
            related: whether `relation_bias` has an effect.
            route: a `RouteLayer` for each layer, of `multi_route`.

        Returns:
            Normalised states [layers, B, Q, C], and the boxes that each layer started from [layers, B, Q, 4] cxcywh
            in 0..1. The latter carry the gradient of the layer before, for `look_forward_twice`.
        """
        scale = memory.levels.valid_ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        lengths = wavelengths(content.shape[-1] // 2, BOX_TEMPERATURE, content.device)
        mask = None
        if blocked is not None:
            mask = torch.zeros_like(blocked, dtype=content.dtype).masked_fill_(blocked, -torch.inf)
        relation = self.relation if related else None
        states = content
        reference = anchors.sigmoid()
        all_states, references, predicted = [], [reference], reference
        for index, layer in enumerate(self.layers):
            boxes = references[-1][:, :, None] * scale
            position = self.query_position(box_position(boxes[:, :, 0], lengths).to(states.dtype))
            states = layer(states, position, boxes, memory, mask, None if route is None else route[index])
            all_states.append(states)
            # A layer attends to constants, so that gradients do not flow through all refinements.
            if len(references) < len(self.layers):
                box_head = self.box_head[index] if isinstance(self.box_head, HeadPerLayer) else self.box_head
                if relation is not None:
                    with torch.no_grad():
                        before, predicted = predicted, refine(box_head, self.norm(states), references[-1])
                    mask = relation(before, predicted)
                    mask = mask if blocked is None else mask.masked_fill(blocked, -torch.inf)
                with torch.no_grad():
                    references.append(refine(box_head, states, references[-1]))
        # The same boxes with their gradient: that of all layers at once is a fifth of the operations.
        stacked, starts = torch.stack(all_states), torch.stack(references)
        refined = refine(self.box_head, stacked[:-1], starts[:-1]) if torch.is_grad_enabled() else starts[1:]
        return self.norm(stacked), torch.cat([starts[:1], refined])


def refine(
    box_head: nn.Module,
    states: Tensor,  # [..., C]
    reference_cxcywh: Tensor,  # [..., 4]
) -> Tensor:
    """Return the reference boxes moved by the head's prediction, in logit space and float32; [..., 4] cxcywh."""
    return (box_head(states).float() + inverse_sigmoid(reference_cxcywh)).sigmoid()


def look_forward_twice(
    box_head: nn.Module,
    states: Tensor,  # [layers, B, Q, C], normalised
    references_cxcywh: Tensor,  # [layers, B, Q, 4], with the gradient of the layer before
) -> Tensor:
    """Return the predicted boxes of all layers, [layers, B, Q, 4] cxcywh.

    Each layer refines the boxes of the layer before *with their gradient*, so that its loss trains both layers'
    refinement; the boxes that the layer itself attended to are constants.
    """
    return refine(box_head, states, references_cxcywh)


def look_forward_once(box_head: nn.Module, states: Tensor, references_cxcywh: Tensor) -> Tensor:
    """Do as `look_forward_twice`, but stop a layer's gradient at the boxes of the layer before (Deformable DETR)."""
    return refine(box_head, states, references_cxcywh.detach())
