"""Bias of the decoder's self-attention from the relation of boxes (Relation-DETR, arXiv 2407.11699).

Switch `relation_bias`. From the second layer on, the logit of query i attending to query j is raised, in each head, by

    ReLU(W sine(e_ij) + c)
    e_ij = [log(|x_i - x_j| / w_i + 1), log(|y_i - y_j| / h_i + 1), log(w_i / w_j), log(h_i / h_j)]

The box (x, y, w, h) of j is what the layer before predicted, that of i what the one before that did (at first, the
anchor). Sizes have an epsilon of 1e-5. The sine embedding has 16 features for each number, with scale 100 and
temperature 10000; W [M, 64] and c [M] are those of all layers. Queries of one object find each other by it, which is
what removing duplicates takes.

Boxes are constants: the gradient reaches W and c alone. The embeddings of all pairs, [B, Q, Q, 64], are not kept for
the backward pass, which computes them again (310 MB for 1,100 queries of an image). A hybrid branch has no bias, as in
the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino.model.position import sine_embedding, wavelengths

FEATURES = 16
TEMPERATURE = 10000.0
SCALE = 100.0
EPS = 1e-5


class RelationBias(nn.Module):
    """From boxes to an additive mask of self-attention."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(4 * FEATURES, num_heads)

    def forward(
        self,
        boxes_cxcywh: Tensor,  # [B, Q, 4] of the queries that attend, in 0..1
        other_cxcywh: Tensor,  # [B, Q, 4] of the queries that they attend to
    ) -> Tensor:
        """Return the bias, [B, M, Q, Q], without gradient of the boxes."""
        boxes = boxes_cxcywh.detach(), other_cxcywh.detach()
        if not torch.is_grad_enabled():
            return self._bias(*boxes)
        # There is no randomness to repeat, and CUDA graphs cannot capture the generator's state.
        return checkpoint(self._bias, *boxes, use_reentrant=False, preserve_rng_state=False)

    def _bias(self, boxes_cxcywh: Tensor, other_cxcywh: Tensor) -> Tensor:
        lengths = wavelengths(FEATURES, TEMPERATURE, boxes_cxcywh.device) * (2 * math.pi / SCALE)
        with torch.no_grad():
            embedded = sine_embedding(box_relation(boxes_cxcywh, other_cxcywh), lengths).flatten(-2)
        return self.project(embedded.to(self.project.weight.dtype)).relu().permute(0, 3, 1, 2)


def box_relation(boxes_cxcywh: Tensor, other_cxcywh: Tensor) -> Tensor:
    """Return e of all pairs, [B, Q, Q, 4]."""
    center, size = boxes_cxcywh[:, :, None].split(2, -1)
    other_center, other_size = other_cxcywh[:, None].split(2, -1)
    size = size + EPS
    distance = (center - other_center).abs() / size
    return torch.cat([(distance + 1).log(), (size / (other_size + EPS)).log()], -1)
