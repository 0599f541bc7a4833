"""The ground truth of a batch in one piece: packed once per step, for matching, losses and denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

# The label of unused slots of a fixed capacity.
NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class PackedTargets:
    """Labels and boxes of all images, one after the other: image b has the rows `offsets[b]` to `offsets[b + 1]`.

    With a fixed capacity N is at least the number of targets, and unused rows at the end belong to no image. Then all
    shapes are the same in every step, as CUDA graphs require, and `copy_` replaces the targets.
    """

    labels: Tensor  # [N] int64
    boxes_cxcywh: Tensor | None  # [N, 4] float32, or None if targets have no boxes
    offsets: Tensor  # [B + 1] int64
    max_targets: int  # no image has more
    counts: tuple[int, ...] | None = None  # [B], if known on the host; None with a fixed capacity

    @classmethod
    def pack(
        cls,
        targets: Sequence[Mapping[str, Tensor]],
        *,
        device: torch.device | str | None = None,
        capacity: int | None = None,
        max_targets: int | None = None,
        label_key: str = "labels",
        box_key: str = "boxes",
    ) -> PackedTargets:
        """Join DETR's targets, a dictionary per image. Does not synchronise with a GPU.

        Args:
            targets: per image `labels` [T] integers and `boxes` [T, 4] (cx, cy, w, h) in 0..1; boxes may be missing in
                all images.
            device: device of the result; None: that of the labels.
            capacity: fixes N.
            max_targets: with a capacity, the most targets of an image; None: the capacity.
            label_key, box_key: keys in the dictionaries; transformers has "class_labels".

        Raises:
            ValueError, TypeError: targets are malformed, or more than the capacity.
        """
        with_boxes = not targets or (isinstance(targets[0], Mapping) and box_key in targets[0])
        counts = tuple(_check(image, target, label_key, box_key, with_boxes) for image, target in enumerate(targets))
        if device is None:
            device = targets[0][label_key].device if targets else "cpu"
        where = torch.device(device)
        labels = [target[label_key].to(where, torch.int64, non_blocking=True) for target in targets]
        all_boxes = [target[box_key].detach() for target in targets] if with_boxes else []
        boxes = [each.to(where, torch.float32, non_blocking=True) for each in all_boxes]
        starts = torch.tensor([0, *accumulate(counts)])
        packed = cls(
            torch.cat([torch.zeros(0, dtype=torch.int64, device=where), *labels]),
            torch.cat([torch.zeros(0, 4, device=where), *boxes]) if with_boxes else None,
            starts.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else starts.to(where),
            max(counts, default=0),
            counts,
        )
        if capacity is None:
            if max_targets is not None:
                raise ValueError("PackedTargets: max_targets needs a capacity. Pass both, or neither")
            return packed
        fixed = cls.empty(len(counts), capacity, max_targets=max_targets, boxes=with_boxes, device=where)
        return fixed.copy_(packed)

    @classmethod
    def empty(
        cls,
        images: int,
        capacity: int,
        *,
        max_targets: int | None = None,
        boxes: bool = True,
        device: torch.device | str = "cpu",
    ) -> PackedTargets:
        """Return no targets, with room for `capacity` of them and at most `max_targets` in an image."""
        if max_targets is None:
            max_targets = capacity
        if not 0 <= max_targets <= capacity:
            raise ValueError(f"PackedTargets: max_targets must be in 0..capacity = {capacity}, got {max_targets}")
        return cls(
            torch.full((capacity,), NO_LABEL, device=device),
            torch.zeros(capacity, 4, device=device) if boxes else None,
            torch.zeros(images + 1, dtype=torch.int64, device=device),
            max_targets,
        )

    def copy_(self, targets: PackedTargets) -> PackedTargets:
        """Replace the targets of a fixed capacity in place, where a captured CUDA graph reads them.

        Args:
            targets: targets of as many images, packed without a capacity.

        Raises:
            ValueError: the numbers of images differ, or there are more targets than the capacity; nothing is changed.
        """
        if self.counts is not None or targets.counts is None:
            raise ValueError("PackedTargets.copy_: targets must be packed without a capacity, and self with one")
        if len(targets.counts) != self.num_images:
            raise ValueError(
                f"PackedTargets.copy_: targets must have B = {self.num_images}, got {len(targets.counts)} images"
            )
        total, capacity = sum(targets.counts), len(self.labels)
        if total > capacity or targets.max_targets > self.max_targets:
            raise ValueError(
                f"PackedTargets.copy_: {total} targets, at most {targets.max_targets} in an image, do not fit a "
                f"capacity of {capacity} with at most {self.max_targets} in an image. Choose a larger capacity"
            )
        if (self.boxes_cxcywh is None) != (targets.boxes_cxcywh is None):
            raise ValueError("PackedTargets.copy_: both must have boxes, or neither")
        self.labels[:total].copy_(targets.labels, non_blocking=True)
        self.labels[total:].fill_(NO_LABEL)
        if self.boxes_cxcywh is not None and targets.boxes_cxcywh is not None:
            self.boxes_cxcywh[:total].copy_(targets.boxes_cxcywh, non_blocking=True)
            self.boxes_cxcywh[total:].zero_()
        self.offsets.copy_(targets.offsets, non_blocking=True)
        return self

    def to(self, device: torch.device | str) -> PackedTargets:
        """Return the targets on a device."""
        boxes = None if self.boxes_cxcywh is None else self.boxes_cxcywh.to(device, non_blocking=True)
        labels, offsets = (tensor.to(device, non_blocking=True) for tensor in (self.labels, self.offsets))
        return replace(self, labels=labels, boxes_cxcywh=boxes, offsets=offsets)

    def pin_memory(self) -> PackedTargets:
        """Return the same targets in page-locked memory, from which copies to a GPU can overlap with its work."""
        boxes = None if self.boxes_cxcywh is None else self.boxes_cxcywh.pin_memory()
        return replace(self, labels=self.labels.pin_memory(), boxes_cxcywh=boxes, offsets=self.offsets.pin_memory())

    @property
    def num_images(self) -> int:
        """The number of images, B."""
        return self.offsets.shape[0] - 1

    def __len__(self) -> int:
        """Return N, the number of targets, or the fixed capacity."""
        return self.labels.shape[0]

    def image_of_each(self) -> Tensor:
        """Return the image of each target, [N] int64 on the device; B for unused slots."""
        rows = torch.arange(len(self), device=self.offsets.device)
        return torch.searchsorted(self.offsets[1:].contiguous(), rows, right=True)

    def places(self) -> tuple[Tensor, Tensor]:
        """Return, for each target, its image and its index among the targets of that image, [N] int64 each."""
        image = self.image_of_each()
        return image, torch.arange(len(self), device=image.device) - self.offsets[image]


def _check(image: int, target: Mapping[str, Tensor], label_key: str, box_key: str, with_boxes: bool) -> int:
    """Check the targets of an image and return their number."""
    where = f"PackedTargets: targets[{image}]"
    if not isinstance(target, Mapping) or label_key not in target:
        found = f"the keys {sorted(target)}" if isinstance(target, Mapping) else type(target).__name__
        raise TypeError(f"{where} must be a dictionary with {label_key!r}, got {found}. See label_key and box_key")
    labels = target[label_key]
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{where}[{label_key!r}] must be a tensor of integers [T], got {got}")
    if (box_key in target) != with_boxes:
        raise ValueError(f"{where} must have {box_key!r} if and only if targets[0] has it. See box_key")
    if with_boxes:
        boxes = target[box_key]
        if not isinstance(boxes, Tensor) or list(boxes.shape) != [len(labels), 4] or not boxes.is_floating_point():
            got = f"{boxes.dtype} {list(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
            raise ValueError(f"{where}[{box_key!r}] must be floating point [T, 4] = [{len(labels)}, 4], got {got}")
    return len(labels)
