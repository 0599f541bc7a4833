"""Pack ground truth where it enters: `DINO.forward` and `SetCriterion.forward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dino_kernels.targets import PackedTargets

Targets = PackedTargets | Sequence[Mapping[str, Tensor]]
"""Packed; or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T]."""


def pack(targets: Targets, device: torch.device, num_classes: int) -> PackedTargets:
    """Return the targets packed and on a device, without synchronising: values on a GPU are not checked.

    Raises:
        ValueError, TypeError: malformed targets; packed targets without boxes; a label that is no class.
    """
    packed = targets if isinstance(targets, PackedTargets) else PackedTargets.pack(targets, device=device)
    if packed.boxes_cxcywh is None:
        raise ValueError("targets must have boxes. Pack them with dino_kernels.PackedTargets.pack(targets).")
    packed.check_labels(num_classes)
    return packed if packed.labels.device == device else packed.to(device)
