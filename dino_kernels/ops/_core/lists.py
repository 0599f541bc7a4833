"""DETR's lists on a CPU, each by one native call: targets of images to packed tensors, matches to pairs.

Each returns None for what it leaves to PyTorch and NumPy: other devices and dtypes, wrong values, observed calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.eager import ORDINARY_TYPES, SeenCalls, are_ordinary, is_observed

_UNUSUAL = -2  # the image that the native op reports then
_seen = SeenCalls(any_sizes=True)


def pack(
    targets: Sequence[Mapping[str, Any]], label_key: str, box_key: str, low: float, high: float
) -> tuple[Tensor, Tensor | None, Tensor, int, int] | None:
    """Return labels [N], boxes [N, 4] or None, offsets [B + 1], the largest label and its image, -1 without labels.

    Args:
        targets: per image labels [T] int64 and, in all images or in none, boxes [T, 4] float32.
        label_key, box_key: their keys.
        low: least allowed cx and cy.
        high: most allowed coordinate.
    """
    if is_observed() or not targets or not all(type(target) is dict for target in targets):
        return None
    with_boxes = box_key in targets[0]
    if not all(label_key in target and (box_key in target) is with_boxes for target in targets):
        return None
    labels = [target[label_key] for target in targets]
    boxes = [target[box_key] for target in targets] if with_boxes else []
    if not _are_readable([*labels, *boxes]):
        return None
    with torch._C._AutoDispatchBelowAutograd():
        packed = torch.ops.dino_kernels_native.pack_targets.default(labels, boxes, low, high)
    all_labels, all_boxes, offsets, largest, image = packed
    return None if image == _UNUSUAL else (all_labels, all_boxes if with_boxes else None, offsets, largest, image)


def pairs(query_idx: Tensor, offsets: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """Return (query [R], target [R]) of each set and image of query_idx [G, N] int64, queries ascending."""
    if is_observed() or query_idx.dtype != torch.int64 or not _are_readable([query_idx, offsets]):
        return None
    flat = iter(torch.ops.dino_kernels_native.matched_pairs.default(query_idx.contiguous(), offsets.contiguous()))
    return list(zip(flat, flat, strict=True))


def _are_readable(tensors: Sequence[Any]) -> bool:
    """Return whether these are ordinary tensors on the CPU, whose values a native op can read."""
    if libraries.CPU_MISSING is not None or not ORDINARY_TYPES.issuperset(map(type, tensors)):
        return False
    if not _seen.find(len(tensors), tensors):
        if not are_ordinary(tensors) or any(tensor.device.type != "cpu" for tensor in tensors):
            return False
        _seen.add(len(tensors), tensors, True)
    return True
