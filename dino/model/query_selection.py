"""Query selection: the decoder's first anchors are the encoder's most confident boxes (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino.model.boxes import inverse_sigmoid
from dino.model.config import ModelConfig
from dino.model.encoder import Memory, pixel_centers
from dino.model.layers import MLP


@dataclass
class Queries:
    """What the decoder starts from, and the encoder's own predictions that chose it."""

    content: Tensor  # [B, Q, C]
    anchors: Tensor  # [B, Q, 4] logits of cxcywh, constants unless query selection is static
    encoder_logits: Tensor | None = None  # [B, Q, C]
    encoder_boxes_cxcywh: Tensor | None = None  # [B, Q, 4]
    indices: Tensor | None = None  # [B, Q] chosen tokens, best first
    proposals_cxcywh: Tensor | None = None  # [B, Q, 4] the tokens' own boxes, before the box head moved them


class QuerySelection(nn.Module):
    """The weights of query selection: encoder heads and learned queries, as far as the variant has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.variant = config.query_selection
        self.num_queries = config.num_queries
        channels = config.hidden_dim
        if self.variant != "pure":
            self.content = nn.Embedding(config.num_queries, channels)
        if self.variant == "static":
            self.anchors = nn.Embedding(config.num_queries, 4)
        else:
            self.project = nn.Linear(channels, channels)
            self.norm = nn.LayerNorm(channels)
            self.class_head = nn.Linear(channels, config.num_classes)
            self.box_head = MLP(channels, channels, 4, 3)


def mixed_query_selection(
    selection: QuerySelection,
    memory: Memory,
    indices: Tensor | None = None,  # [B, Q] forces the choice
) -> Queries:
    """Anchors are the boxes of the best-scored tokens, content is learned.

    In the variant "pure" content is the chosen tokens too, as in two-stage Deformable DETR. Tokens of padding or at the
    border have no proposal: they share one feature and their box is (1, 1, 1, 1), but the choice does not leave them
    out, as in the official model. There are fewer queries where there are fewer tokens.
    """
    proposals, usable = token_proposals(memory)
    tokens = selection.norm(selection.project(memory.tokens.masked_fill(~usable[..., None], 0)))
    logits = selection.class_head(tokens)
    if indices is None:
        indices = _best_tokens(logits, selection.num_queries)
    features, logits, proposals = _chosen(tokens, indices), _chosen(logits, indices), _chosen(proposals, indices)
    anchors = selection.box_head(features).float() + proposals
    if selection.variant == "pure":
        content = features.detach()
    else:
        content = selection.content.weight[: indices.shape[1]].expand(len(indices), -1, -1)
    return Queries(
        content=content,
        anchors=anchors.detach(),
        encoder_logits=logits,
        encoder_boxes_cxcywh=anchors.sigmoid(),
        indices=indices,
        proposals_cxcywh=proposals.sigmoid(),
    )


def _best_tokens(logits: Tensor, count: int) -> Tensor:
    return logits.amax(-1).topk(min(count, logits.shape[1]), 1).indices


def _chosen(x: Tensor, indices: Tensor) -> Tensor:
    """Rows [B, Q, ...] of x [B, S, ...]."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def static_queries(selection: QuerySelection, memory: Memory) -> Queries:
    """Learned anchors and content, the same for every image (as in DAB-DETR)."""
    batch = len(memory.tokens)
    return Queries(
        content=selection.content.weight.expand(batch, -1, -1),
        anchors=selection.anchors.weight.float().expand(batch, -1, -1),
    )


def token_proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box around each token: its pixel's centre, and 5 % of the image at the finest level, twice that at the next.

    Returns:
        Logits of cxcywh [B, S, 4], +inf where there is no proposal, and where there is one [B, S] bool: the pixel is
        not padding, and no number of the box is within 0.01 of 0 or 1.
    """
    levels = [
        torch.cat([centers, torch.full_like(centers, 0.05 * 2.0**level)], -1)
        for level, centers in enumerate(pixel_centers(memory))
    ]
    boxes = torch.cat(levels, 1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~memory.padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(~usable[..., None], torch.inf), usable


def random_anchors(count: int) -> Tensor:
    """[count, 4] logits of boxes spread over the image: the start of static anchors (DAB-DETR)."""
    return inverse_sigmoid(torch.rand(count, 4))
