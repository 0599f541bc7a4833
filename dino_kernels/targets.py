"""The ground truth of a batch in one piece: packed once per step, for matching, losses and denoising."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_kernels.ops._checks import check_count
from dino_kernels.ops._core import lists

# The label of unused slots of a fixed capacity.
NO_LABEL = -1
# How far a coordinate may be outside 0..1: crops and rounding to 16 bits or whole pixels move it by less.
OVERSHOOT = 0.01
MOST = float(np.finfo(np.float32).max)
NOT_LABELS = (torch.bool, torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
    largest_label: int | None = None  # if known on the host
    largest_at: str = ""  # where `pack` got it, such as "targets[2]['labels']"

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
        normalized: bool = True,
    ) -> PackedTargets:
        """Join DETR's targets, a dictionary per image. Does not synchronise with a GPU.

        Values are checked where that needs no wait: in tensors on the CPU, and not under `torch.compile`.

        Args:
            targets: per image `labels` [T] integers and `boxes` [T, 4] (cx, cy, w, h) in 0..1; boxes may be missing in
                all images.
            device: device of the result; None: that of the labels.
            capacity: fixes N.
            max_targets: with a capacity, the most targets of an image; None: the capacity.
            label_key, box_key: keys in the dictionaries; transformers has "class_labels".
            normalized: boxes are in 0..1 of their image, as detectors of DETR's family predict them. False: they are
                in another unit, such as pixels.

        Raises:
            ValueError, TypeError: targets are malformed, or more than the capacity; a label is negative; a box is not
                finite, of negative size or, if `normalized`, more than 0.01 outside 0..1.
        """
        if isinstance(targets, Mapping) or not isinstance(targets, Sequence):
            raise TypeError(
                f"PackedTargets: targets must be a list with a dictionary for each image, got {type(targets).__name__}"
            )
        low, high = (-OVERSHOOT, 1 + OVERSHOOT) if normalized else (-MOST, MOST)
        if capacity is None and max_targets is None and (device is None or torch.device(device).type == "cpu"):
            packed = lists.pack(targets, label_key, box_key, low, high)
            if packed is not None:
                labels, boxes, starts, largest, image = packed
                counts = tuple(len(target[label_key]) for target in targets)
                at = f"targets[{image}][{label_key!r}]" if image >= 0 else ""
                return cls(labels, boxes, starts, max(counts), counts, largest, at)
        with_boxes = not targets or (isinstance(targets[0], Mapping) and box_key in targets[0])
        counts = tuple(_check(image, target, label_key, box_key, with_boxes) for image, target in enumerate(targets))
        largest = _check_values(targets, label_key, box_key if with_boxes else None, low, high)
        if device is None:
            device = targets[0][label_key].device if targets else "cpu"
        where = torch.device(device)
        labels = [target[label_key].to(where, torch.int64, non_blocking=True) for target in targets]
        all_boxes = [target[box_key].detach() for target in targets] if with_boxes else []
        boxes = [each.to(where, torch.float32, non_blocking=True) for each in all_boxes]
        starts = torch.tensor([0, *accumulate(counts)])
        packed = cls(
            torch.cat([torch.zeros(0, dtype=torch.int64, device=where), *labels]),
            torch.cat([torch.zeros(0, 4, dtype=torch.float32, device=where), *boxes]) if with_boxes else None,
            # Dynamo has no page-locked memory.
            starts.pin_memory().to(where, non_blocking=True)
            if where.type == "cuda" and not torch.compiler.is_compiling()
            else starts.to(where),
            max(counts, default=0),
            counts,
            *largest,
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
        check_count("PackedTargets", "images", images)
        check_count("PackedTargets", "capacity", capacity)
        if max_targets is None:
            max_targets = capacity
        check_count("PackedTargets", "max_targets", max_targets)
        if max_targets > capacity:
            raise ValueError(f"PackedTargets: max_targets must be in 0..capacity = {capacity}, got {max_targets}")
        return cls(
            torch.full((capacity,), NO_LABEL, dtype=torch.int64, device=device),
            torch.zeros(capacity, 4, dtype=torch.float32, device=device) if boxes else None,
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
        if not isinstance(targets, PackedTargets):
            raise TypeError(f"PackedTargets.copy_: targets must be PackedTargets, got {type(targets).__name__}")
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

    def check_labels(self, num_classes: int) -> None:
        """Check that all labels are below the number of classes, if the host knows the largest.

        Raises:
            ValueError: a label is no class.
        """
        if self.largest_label is not None and self.largest_label >= num_classes:
            raise ValueError(
                f"{self.largest_at} must be in 0..{num_classes - 1}, the model's {num_classes} classes, got "
                f"{self.largest_label}. Renumber the labels from 0, or build the model with more classes."
            )

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
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype in NOT_LABELS or labels.is_complex():
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


def _check_values(
    targets: Sequence[Mapping[str, Tensor]], label_key: str, box_key: str | None, low: float, high: float
) -> tuple[int | None, str]:
    """Check the values on the host; return the largest label, None if it does not have all, and its place."""
    if torch.compiler.is_compiling():
        return None, ""
    if box_key is not None:
        normalized = high < MOST

        def is_wrong(boxes: np.ndarray) -> np.ndarray:
            return np.invert(np.all((boxes >= [low, low, 0, 0]) & (boxes <= high), axis=1))

        for where, box in _found(_on_host(targets, box_key), is_wrong):
            shown = ", ".join(f"{float(number):.6g}" for number in box)
            in_pixels = normalized and np.isfinite(box).all() and (box[2:] >= 0).all()
            unit = "in 0..1" if normalized else "that are finite"
            pixels = "Divide boxes in pixels by the image's (W, H, W, H), or pack them with normalized=False."
            raise ValueError(
                f"PackedTargets: {where} must be (cx, cy, w, h) {unit}, w and h not negative, got ({shown}). "
                f"{pixels if in_pixels else 'Correct or remove the box.'}"
            )
    labels = _on_host(targets, label_key)
    for where, label in _found(labels, lambda labels: labels < 0):
        raise ValueError(f"PackedTargets: {where} must be classes, numbered from 0, got {label}. Leave out padding.")
    if len(labels) < len(targets):
        return None, ""
    largest = max((int(values.max()) for _, values in labels if len(values)), default=NO_LABEL)
    return largest, next((where for where, values in labels if largest in values), "")


def _on_host(targets: Sequence[Mapping[str, Tensor]], key: str) -> list[tuple[str, np.ndarray]]:
    """Return the values under a key that the host has, each with its place."""
    found = []
    for image, target in enumerate(targets):
        tensor = target[key].detach()
        if tensor.device.type == "cpu":
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()  # NumPy has no bfloat16
            with suppress(RuntimeError, TypeError):  # a tensor without values, such as those of torch.export
                found.append((f"targets[{image}][{key!r}]", tensor.numpy()))
    return found


def _found(
    values: list[tuple[str, np.ndarray]], is_wrong: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[str, Any]]:
    """Yield the first wrong row, if any, with its place. All images are compared at once."""
    if values and is_wrong(np.concatenate([rows for _, rows in values])).any():
        yield next((where, rows[wrong][0]) for where, rows in values if (wrong := is_wrong(rows)).any())
