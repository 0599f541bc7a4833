"""Matching whose class cost knows the boxes: switch `match_cost = "position"` (Stable-DINO, arXiv 2304.04742).

The probability p of a query for the class of a target is lowered where its box is far from the target's, so that a
confident query elsewhere in the image does not win:

    m = p ((GIoU + 1) / 2)^0.5
    class cost = 0.25 (1 - m)^2 (-log(m + 1e-8)) - 0.75 m^2 (-log(1 - m + 1e-8))

L1 and GIoU cost are those of DINO. The authors' code also divides (GIoU + 1) / 2 by its largest value in an image, and
takes that of another target where several of a batch have one class; here it is the pair's own, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino_kernels.targets import PackedTargets

EPS = 1e-8


@torch.no_grad()
def position_class_cost(
    logits: Sequence[Tensor],  # each [sets, B, Q, C]
    boxes_cxcywh: Sequence[Tensor],  # each [sets, B, Q, 4]
    targets: PackedTargets,
) -> Tensor:
    """Return the class cost of every target with every query of its image, as `extra_cost` of the matching.

    Returns:
        [G, N, Q] float32 for G sets and N targets. Any number in rows of unused capacity and for queries that a set
        does not have, NaN where a prediction is not finite: the matching forbids these.
    """
    assert targets.boxes_cxcywh is not None  # pack() refuses
    image = targets.image_of_each().clamp(max=targets.num_images - 1)
    corners = cxcywh_to_xyxy(targets.boxes_cxcywh)[:, None]
    most = max(source.shape[2] for source in logits)
    own, predicted = [], []  # [sets, N, most queries] and [sets, N, most queries, 4]
    for some, boxes in zip(logits, boxes_cxcywh, strict=True):
        label, missing = targets.labels.clamp(0, some.shape[-1] - 1), most - some.shape[2]
        own.append(F.pad(some[:, image, :, label].float().transpose(0, 1), (0, missing)))
        predicted.append(F.pad(boxes.float()[:, image], (0, 0, 0, missing)))
    overlap = generalized_iou(cxcywh_to_xyxy(torch.cat(predicted)), corners)
    return _focal_cost(torch.cat(own).sigmoid() * ((overlap + 1) / 2).clamp(min=0).sqrt())


def _focal_cost(probability: Tensor) -> Tensor:
    """Return DINO's class cost of probabilities."""
    positive = 0.25 * (1 - probability) ** 2 * -(probability + EPS).log()
    return positive - 0.75 * probability**2 * -(1 - probability + EPS).log()
