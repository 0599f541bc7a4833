"""Box formats, the logit space in which boxes are refined, and generalised IoU."""

from __future__ import annotations

import torch
from torch import Tensor

GIOU_EPS = 1e-6
LOGIT_EPS = 1e-3


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert [..., 4] centre, width and height to [..., 4] corners, in the same unit."""
    center, size = boxes_cxcywh.split(2, -1)
    half = size / 2
    return torch.cat([center - half, center + half], -1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert [..., 4] corners to [..., 4] centre, width and height, in the same unit."""
    low, high = boxes_xyxy.split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


def inverse_sigmoid(probability: Tensor) -> Tensor:
    """Return the logit of a value in [0, 1], bounded to +-6.9; its gradient is zero outside [0.001, 0.999]."""
    return torch.log(probability.clamp(LOGIT_EPS, 1.0) / (1 - probability).clamp(LOGIT_EPS, 1.0))


def generalized_iou(
    boxes_xyxy: Tensor,  # [..., 4]
    other_xyxy: Tensor,  # [..., 4], broadcast against boxes_xyxy
) -> Tensor:
    """Return the generalised IoU of boxes with their counterparts, in [-1, 1] (arXiv 1902.09630).

    For all pairs, pass `boxes[:, None]` and `other[None, :]`.
    """
    return iou_and_giou(boxes_xyxy, other_xyxy)[1]


def iou_and_giou(boxes_xyxy: Tensor, other_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU in [0, 1] and generalised IoU in [-1, 1], both as `generalized_iou` takes and returns them."""
    hull_low, high = torch.minimum(boxes_xyxy, other_xyxy).split(2, -1)
    low, hull_high = torch.maximum(boxes_xyxy, other_xyxy).split(2, -1)
    intersection = _area((high - low).clamp(min=0))
    hull = _area((hull_high - hull_low).clamp(min=0))
    first, second = (_area(high - low) for low, high in (boxes_xyxy.split(2, -1), other_xyxy.split(2, -1)))
    union = first + second - intersection
    iou = intersection / (union + GIOU_EPS)
    return iou, iou - (hull - union) / (hull + GIOU_EPS)


def _area(size: Tensor) -> Tensor:
    """Return width times height of [..., 2]; the backward pass of `prod` would take five times as many operations."""
    width, height = size.unbind(-1)
    return width * height
