"""Cost of matching masks at random points, as in Mask2Former (arXiv 2112.01527)."""

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
    """Return the weighted cross-entropy and dice cost of every target with every query of its image, [N, Q] float32.

    All masks of an image are sampled at the same points, drawn per image from the default generator of the device of
    `mask_logits`: with the same seed they are those of Mask2Former.

    Args:
        mask_logits: predicted masks.
        targets: per image `masks` [T, H', W'], 0 or 1.

    Raises:
        ValueError: masks of another shape, or not one for each label.
    """
    if mask_logits.dim() != 4:
        raise ValueError(f"HungarianMatcher: pred_masks must be [B, Q, H, W], got {list(mask_logits.shape)}")
    for image, target in enumerate(targets):
        masks = target.get("masks")
        if (
            not isinstance(masks, Tensor)
            or masks.dim() != 3
            or (isinstance(target.get("labels"), Tensor) and len(masks) != len(target["labels"]))
        ):
            got = list(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise ValueError(
                f"HungarianMatcher: targets[{image}]['masks'] must be a tensor [T, H', W'], a mask for each label, "
                f"got {got}"
            )
    costs = []
    # grid_sample needs positions and values of one dtype, and positions need more than 16 bits.
    with torch.autocast(mask_logits.device.type, enabled=False):
        for logits, target in zip(mask_logits, targets, strict=True):
            points = torch.rand(1, num_points, 2, dtype=torch.float32, device=logits.device)
            predicted = _sample(logits.float(), points)  # [Q, P]
            truth = _sample(target["masks"].to(logits.device, torch.float32, non_blocking=True), points)  # [T, P]
            cost = cross_entropy_weight * _cross_entropy_cost(predicted, truth)
            costs.append(cost + dice_weight * _dice_cost(predicted, truth))
    return torch.cat(costs) if costs else mask_logits.new_zeros((0, mask_logits.shape[1]), dtype=torch.float32)


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks [N, H, W] bilinearly at points [1, P, 2], (x, y) in 0..1; return [N, P]."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(masks[None], grid, align_corners=False)[0, :, :, 0]


def _cross_entropy_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of every pair, [T, Q]."""
    as_foreground = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    as_background = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    return (truth @ as_foreground.T + (1 - truth) @ as_background.T) / logits.shape[1]


def _dice_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - dice coefficient of every pair, smoothed by 1, [T, Q]."""
    probability = logits.sigmoid()
    overlap = 2 * truth @ probability.T
    return 1 - (overlap + 1) / (truth.sum(1)[:, None] + probability.sum(1) + 1)
