"""Bias of the decoder's self-attention from the relation of boxes (Relation-DETR, arXiv 2407.11699).

Switch `relation_bias`. From the second layer on, the logit of query i attending to query j is raised, in each head, by

    ReLU(W sine(e_ij) + c)
    e_ij = [log(|x_i - x_j| / w_i + 1), log(|y_i - y_j| / h_i + 1), log(w_i / w_j), log(h_i / h_j)]

The box (x, y, w, h) of j is what the layer before predicted, that of i what the one before that did (at first, the
anchor). Sizes have an epsilon of 1e-5. The sine embedding has 16 features for each number, with scale 100 and
temperature 10000; W [M, 64] and c [M] are those of all layers. Queries of one object find each other by it, which is
what removing duplicates takes.

Boxes are constants: the gradient reaches W and c alone. Sizes need no sine for each pair, as e has differences of their
logarithms. The 32 sines and cosines of centres, [B, Q, Q, 32], are not kept for the backward pass, which computes them
again (155 MB for 1,100 queries of an image). A hybrid branch, as in the paper, and the routes of `multi_route` have no
bias.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino.model.position import wavelengths

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
        center, size = boxes_cxcywh.split(2, -1)
        other_center, other_size = other_cxcywh.split(2, -1)
        size = size + EPS
        lengths = wavelengths(FEATURES, TEMPERATURE, size.device) * (2 * math.pi / SCALE)
        # Weights of the sines and cosines, which alternate: per head those of centres, then of sizes.
        weight = self.project.weight.unflatten(1, (2, FEATURES, 2)).movedim(-1, 0)  # [2, M, 2, FEATURES]
        of_centers, of_sizes = weight.unbind(2)
        distance = (center[:, :, None] - other_center[:, None]).abs() / size[:, :, None]
        angles = ((distance + 1).log()[..., None] / lengths).flatten(-2)  # [B, Q, Q, FEATURES]
        sine, cosine = (wave.to(weight.dtype) for wave in (angles.sin(), angles.cos()))
        bias = F.linear(sine, of_centers[0], self.project.bias) + F.linear(cosine, of_centers[1])
        # Angles of sizes are differences a - b, so their sines are sums of products of those of a and b.
        a, b = ((x.log()[..., None] / lengths).flatten(-2)[:, None] for x in (size, other_size + EPS))
        sines, cosines = of_sizes[:, None, :, None]  # [1, M, 1, FEATURES]
        left = torch.cat([sines * a.sin() + cosines * a.cos(), cosines * a.sin() - sines * a.cos()], -1)
        of_pairs = left @ torch.cat([b.cos(), b.sin()], -1).transpose(-1, -2)
        return (bias.permute(0, 3, 1, 2) + of_pairs.to(bias.dtype)).relu()
