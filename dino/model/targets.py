"""The ground truth of a batch, as denoising, matching and losses share it: packed once a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dino_kernels.targets import PackedTargets

Targets = PackedTargets | Sequence[Mapping[str, Tensor]]
"""Packed; or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T], which each user of them has to pack."""


def pack(targets: Targets, device: torch.device) -> PackedTargets:
    """The targets in one piece and on a device, without waiting for it; packed ones that are there as they are.

    Raises:
        ValueError, TypeError: malformed targets, named with their image; packed ones without boxes, or with a capacity,
            of which the host does not know how many there are.
    """
    packed = targets if isinstance(targets, PackedTargets) else PackedTargets.pack(targets, device=device)
    if packed.counts is None or packed.boxes_cxcywh is None:
        raise ValueError("targets must have boxes and no capacity: dino_kernels.PackedTargets.pack(targets) does that")
    return packed if packed.labels.device == device else packed.to(device)


def num_images(targets: Targets) -> int:
    """How many images the targets are of."""
    return targets.num_images if isinstance(targets, PackedTargets) else len(targets)


def places(targets: PackedTargets) -> tuple[Tensor, Tensor]:
    """For every box of a batch, [N] each: the index of its image, and its number among that image's boxes."""
    image = targets.image_of_each()
    return image, torch.arange(len(targets), device=image.device) - targets.offsets[image]
