"""Overlap of boxes, and non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas [...] of boxes [..., 4]; 0 for inverted ones."""
    width, height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def intersect(boxes_xyxy: Tensor, other_xyxy: Tensor) -> Tensor:
    """Return the common parts [..., 4] of boxes, broadcast; where there is none, the box is inverted."""
    low = torch.maximum(boxes_xyxy[..., :2], other_xyxy[..., :2])
    high = torch.minimum(boxes_xyxy[..., 2:], other_xyxy[..., 2:])
    return torch.cat([low, high], -1)


def iou(boxes_xyxy: Tensor, other_xyxy: Tensor) -> Tensor:
    """Return intersection over union [...] of boxes, broadcast; 0 for two empty boxes."""
    common = area(intersect(boxes_xyxy, other_xyxy))
    return common / (area(boxes_xyxy) + area(other_xyxy) - common).clamp(min=1e-9)


def nms(
    boxes_xyxy: Tensor,  # [N, 4]
    labels: Tensor,  # [N]
    most: float,
) -> Tensor:
    """Return the indices of the boxes that remain, best first, for boxes in falling order of their scores.

    A box goes if its IoU with a better remaining box of its class is above `most`.
    """
    keep = torch.ones(len(labels), dtype=torch.bool)
    for i in range(len(labels)):
        if keep[i]:
            later = slice(i + 1, None)
            keep[later] &= (iou(boxes_xyxy[i], boxes_xyxy[later]) <= most) | (labels[later] != labels[i])
    return keep.nonzero()[:, 0]
