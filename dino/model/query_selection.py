"""Query selection: the decoder's first anchors are the encoder's most confident boxes (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino.model.boxes import inverse_sigmoid
from dino.model.config import ModelConfig
from dino.model.encoder import Levels, Memory
from dino.model.layers import MLP
from dino.model.successors.hybrid import HybridQueries
from dino.model.successors.multi_route import Routes


@dataclass
class Queries:
    """Input of the decoder, and the encoder's predictions that selected it."""

    content: Tensor  # [B, Q, C]
    anchors: Tensor  # [B, Q, 4] logits of cxcywh, constants unless query selection is static
    encoder_logits: Tensor | None = None  # [B, Q, C]
    encoder_boxes_cxcywh: Tensor | None = None  # [B, Q, 4]
    indices: Tensor | None = None  # [B, Q] selected tokens, best first
    proposals_cxcywh: Tensor | None = None  # [B, Q, 4] the tokens' boxes before the box head moved them


class QuerySelection(nn.Module):
    """From the encoder's tokens to the decoder's queries, in the variants "mixed", "pure" and "static"."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.variant = config.query_selection
        self.num_queries = config.num_queries
        channels = config.hidden_dim
        self.content = nn.Embedding(config.num_queries, channels) if self.variant != "pure" else None
        if self.variant == "static":
            self.anchors = nn.Embedding(config.num_queries, 4)
        else:
            self.project = nn.Linear(channels, channels)
            self.norm = nn.LayerNorm(channels)
            self.class_head = nn.Linear(channels, config.num_classes)
            self.box_head = MLP(channels, channels, 4, 3)

    def forward(
        self,
        memory: Memory,
        indices: Tensor | None = None,  # [B, Q] tokens to select in place of the best-scored ones
        other: HybridQueries | Routes | None = None,  # a branch with heads of its own, the first with content, too
    ) -> Queries:
        """Return the queries of each image; fewer than `num_queries` if there are fewer tokens.

        Mixed: anchors are the boxes of the best-scored tokens, content is learned. Pure: content is the selected tokens
        too, as in two-stage Deformable DETR. Static: both are learned and the same for every image (DAB-DETR).

        Tokens of padding or at the border have no proposal: they share one feature and their box is (1, 1, 1, 1), but
        they can be selected, as in the official model.
        """
        if self.variant == "static":
            assert self.content is not None
            shape = (memory.tokens.shape[0], -1, -1)
            return Queries(self.content.weight.expand(shape), self.anchors.weight.float().expand(shape))
        proposals, unusable = token_proposals(memory.levels)
        tokens = memory.tokens.masked_fill(unusable[..., None], 0)
        heads = self if other is None else other
        if indices is None:
            indices = self.select(tokens) if other is None else self.select(tokens, other)
        rows = indices[..., None]
        tokens, proposals = (x.gather(1, rows.expand(-1, -1, x.shape[-1])) for x in (tokens, proposals))
        features = self.norm(self.project(tokens))
        logits = heads.class_head(features)
        anchors = heads.box_head(features).float() + proposals
        learned = self.content if heads.content is None else heads.content
        if learned is None:
            content = features.detach()
        else:
            content = learned.weight[: indices.shape[1]].expand(indices.shape[0], -1, -1)
        return Queries(
            content=content,
            anchors=anchors.detach(),
            encoder_logits=logits,
            encoder_boxes_cxcywh=anchors.sigmoid(),
            indices=indices,
            proposals_cxcywh=proposals.sigmoid(),
        )

    @torch.no_grad()
    def select(
        self,
        tokens: Tensor,  # [B, S, C]
        other: HybridQueries | Routes | None = None,
    ) -> Tensor:
        """Return the best-scored tokens [B, Q], best first. Only their features, computed again, have a gradient."""
        heads = self if other is None else other
        scores = heads.class_head(self.norm(self.project(tokens))).amax(-1)
        return scores.topk(min(heads.num_queries, scores.shape[1]), 1).indices


def token_proposals(levels: Levels) -> tuple[Tensor, Tensor]:
    """Return a box around each token: its pixel's centre, and 5 % of the image at the finest level, doubled per level.

    Returns:
        Logits of cxcywh [B, S, 4], +inf where there is no proposal; and [B, S] bool, True there: the pixel is padding,
        or a coordinate of the box is not between 0.01 and 0.99.
    """
    centers = levels.centers
    sizes = [
        centers.new_full((height * width, 2), 0.05 * 2.0**level)
        for level, (height, width) in enumerate(levels.spatial_shapes)
    ]
    boxes = torch.cat([centers, torch.cat(sizes).expand_as(centers)], -1)
    unusable = ((boxes <= 0.01) | (boxes >= 0.99)).any(-1) | levels.padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(unusable[..., None], torch.inf), unusable


def random_anchors(count: int) -> Tensor:
    """Draw [count, 4] logits of boxes all over the image: the initial static anchors (DAB-DETR)."""
    return inverse_sigmoid(torch.rand(count, 4))
