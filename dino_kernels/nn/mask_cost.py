"""Cost of matching masks at random points, as Mask2Former has it (arXiv 2112.01527)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_cost(
    mask_logits: Tensor,  # [B, Q, H, W]
    targets: Sequence[Mapping[str, Tensor]],
    num_points: int,
    cross_entropy_weight: float,
    dice_weight: float,
) -> Tensor:
    """Weighted cross-entropy and dice cost of every target's mask with every query's of its image, [N, Q] float32.

    All masks of an image are sampled at the same points, drawn per image on the device of `mask_logits` from its
    default generator: with the same seed, those of Mask2Former.

    Args:
        mask_logits: predicted.
        targets: per image `masks` [T, H', W'], 0 or 1.
    """
    costs = []
    # grid_sample takes positions and values of one dtype, and 16 bits are too few for positions.
    with torch.autocast(mask_logits.device.type, enabled=False):
        for logits, target in zip(mask_logits, targets, strict=True):
            points = torch.rand(1, num_points, 2, device=logits.device)
            predicted = _sample(logits.float(), points)  # [Q, P]
            wanted = _sample(target["masks"].to(logits.device, torch.float32, non_blocking=True), points)  # [T, P]
            cost = cross_entropy_weight * _cross_entropy_cost(predicted, wanted)
            costs.append(cost + dice_weight * _dice_cost(predicted, wanted))
    return torch.cat(costs) if costs else mask_logits.new_zeros((0, mask_logits.shape[1]), dtype=torch.float32)


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of masks [N, H, W] at points [1, P, 2] (x, y) in 0..1, [N, P]."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(masks[None], grid, align_corners=False)[0, :, :, 0]


def _cross_entropy_cost(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair, [T, Q]."""
    as_foreground = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    as_background = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    return (wanted @ as_foreground.T + (1 - wanted) @ as_background.T) / logits.shape[1]


def _dice_cost(logits: Tensor, wanted: Tensor) -> Tensor:
    """1 - dice coefficient of every pair, smoothed by 1, [T, Q]."""
    probability = logits.sigmoid()
    overlap = 2 * wanted @ probability.T
    return 1 - (overlap + 1) / (wanted.sum(1)[:, None] + probability.sum(1) + 1)
