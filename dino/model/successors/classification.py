"""Classification losses that know how well the box of a matched query fits: switch `classification`.

All have the form of a weighted cross-entropy. Of a logit x with p = sigmoid(x), y = 1 for the class of a matched query
and 0 otherwise, and u the IoU of the matched boxes, which has no gradient:

    loss = w * (-t log p - (1 - t) log(1 - p)),   t = 0 where y = 0

| name          | t where y = 1            | w where y = 1    | w where y = 0 | source                               |
|---------------|--------------------------|------------------|---------------|--------------------------------------|
| varifocal     | u                        | u                | 0.75 p^2      | VarifocalNet, arXiv 2008.13367       |
| iou_aware     | max(p^0.25 u^0.75, 0.01) | 1                | p^2           | Align-DETR, arXiv 2304.07527         |
| position      | u^2 / max u^2 of image   | 0.25 (t - p)^2   | 0.75 p^2      | Stable-DINO, arXiv 2304.04742        |
| matchability  | u^1.5                    | 1                | p^1.5         | DEIM, arXiv 2412.04234               |

The focal loss of DINO is t = 1, with the weights of "position". As in the papers' code, t is a constant, and w of
varifocal (that of Relation-DETR) and matchability too; w of the others has a gradient. Stable-DINO scales the targets
of an image (in each layer) up, so that the largest is 1. Logarithms are exact; Stable-DINO's have an epsilon of 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and the target that it should find, of all sets of predictions; without gradient."""

    row: Tensor  # [P] prediction of each pair
    label: Tensor  # [P] class of its target
    iou: Tensor  # [P] of its boxes; any where the pair does not exist
    exists: Tensor  # [P] bool
    image: Tensor  # [P] image of the pair, counted over all sets
    num_images: int  # of all sets


def _varifocal(probability: Tensor, pairs: Pairs) -> Tensor:
    return pairs.iou


def _iou_aware(probability: Tensor, pairs: Pairs) -> Tensor:
    return (probability**0.25 * pairs.iou**0.75).clamp(min=0.01)


def _position(probability: Tensor, pairs: Pairs) -> Tensor:
    squared = (pairs.iou**2).where(pairs.exists, 0)
    largest = squared.new_zeros(pairs.num_images).scatter_reduce(0, pairs.image, squared, "amax")
    return squared / (largest[pairs.image] + 1e-8)


def _matchability(probability: Tensor, pairs: Pairs) -> Tensor:
    return pairs.iou**1.5


@dataclass(frozen=True)
class _Loss:
    target: Callable[[Tensor, Pairs], Tensor]  # t of each pair [P], of the probability of its class [P]
    weight: Callable[[Tensor, Tensor, Tensor], Tensor]  # w of each logit, of its p, y and t


_LOSSES = {
    "varifocal": _Loss(_varifocal, lambda p, y, t: 0.75 * p.detach() ** 2 * (1 - y) + t),
    "iou_aware": _Loss(_iou_aware, lambda p, y, t: p**2 * (1 - y) + y),
    "position": _Loss(_position, lambda p, y, t: (0.75 - 0.5 * y) * (t - p) ** 2),
    "matchability": _Loss(_matchability, lambda p, y, t: p.detach() ** 1.5 * (1 - y) + y),
}


@torch.no_grad()
def pair_targets(name: str, logits: Tensor, pairs: Pairs) -> Tensor:
    """Return t of each pair, [P]; any number where the pair does not exist.

    Args:
        name: of the loss.
        logits: [R, C] of all predictions.
        pairs: those to score.
    """
    return _LOSSES[name].target(logits[pairs.row, pairs.label].sigmoid(), pairs)


def classification_loss(
    name: str,
    logits: Tensor,  # [R, C] of all predictions
    targets: Tensor,  # [P] t of each pair
    pairs: Pairs,
) -> Tensor:
    """Return the loss of every logit, [R, C]."""
    score, is_class = logits.new_zeros(2, len(logits) + 1, logits.shape[1]).unbind()
    place = (pairs.row.where(pairs.exists, len(logits)), pairs.label)  # the last row is cut off
    # Of pairs of one query and class, which routes can have, the target is the larger one.
    flat = place[0] * logits.shape[1] + place[1]
    score = score.flatten().scatter_reduce(0, flat, targets.to(score), "amax").view_as(score)
    is_class.index_put_(place, targets.new_ones(()))
    score, is_class = score[:-1], is_class[:-1]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, score, reduction="none")
    return _LOSSES[name].weight(logits.sigmoid(), is_class, score) * cross_entropy
