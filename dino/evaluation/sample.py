"""True boxes and detections of a set of images as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino.common.finite import NotFiniteError
from dino.data import Categories

# COCO counts at most this many detections of a class in an image.
MOST_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class Sample:
    """True boxes and detections, sorted by image, detections of an image by falling score.

    Images are positions in `image_ids`, labels are positions in `categories`.
    """

    categories: Categories
    image_ids: np.ndarray  # [I] int64, rising
    first_true: np.ndarray  # [I + 1] int64: image i has true boxes first[i] to first[i + 1]
    true_labels: np.ndarray  # [T] int64
    true_xywh: np.ndarray  # [T, 4] float64, pixels
    crowds: np.ndarray  # [T] bool
    first_found: np.ndarray  # [I + 1] int64
    labels: np.ndarray  # [D] int64
    xywh: np.ndarray  # [D, 4] float64, pixels
    scores: np.ndarray  # [D] float64

    @property
    def num_true(self) -> np.ndarray:
        """True boxes of each label without crowds, [C] int64."""
        return np.bincount(self.true_labels[~self.crowds], minlength=self.categories.num_classes)

    def true_in(self, image: int) -> slice:
        """Return the true boxes of an image."""
        return slice(int(self.first_true[image]), int(self.first_true[image + 1]))

    def found_in(self, image: int) -> slice:
        """Return the detections of an image."""
        return slice(int(self.first_found[image]), int(self.first_found[image + 1]))


def build_sample(
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int],
    ground_truth: Mapping[str, Any],
    categories: Categories,
) -> Sample:
    """Return the boxes of `image_ids` as arrays: the 100 best detections of each class in an image, as COCO counts.

    Args:
        results: entries of a COCO result file.
        ground_truth: the content of a COCO annotation file.
        categories: the categories to count. Detections of others are left out.
    """
    ids = np.array(sorted(set(image_ids)), dtype=np.int64)
    image_of = {image_id: i for i, image_id in enumerate(ids.tolist())}
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}
    true = [a for a in ground_truth["annotations"] if a["image_id"] in image_of]
    found = [r for r in results if r["image_id"] in image_of and r["category_id"] in label_of]
    true_images, true_labels, true_xywh = _arrays(true, image_of, label_of)
    images, labels, xywh = _arrays(found, image_of, label_of)
    scores = np.array([r["score"] for r in found], dtype=np.float64)

    by_class = np.lexsort((-scores, labels, images))  # stable: equal scores stay in the order of the results
    groups = np.stack([images, labels])[:, by_class]
    starts = np.append(True, (groups[:, 1:] != groups[:, :-1]).any(0))[: len(by_class)]
    rank = np.arange(len(by_class)) - np.maximum.accumulate(np.where(starts, np.arange(len(by_class)), 0))
    kept = by_class[rank < MOST_DETECTIONS]
    order = kept[np.lexsort((-scores[kept], images[kept]))]
    true_order = np.argsort(true_images, kind="stable")
    positions = np.arange(len(ids) + 1)
    return Sample(
        categories=categories,
        image_ids=ids,
        first_true=np.searchsorted(true_images[true_order], positions),
        true_labels=true_labels[true_order],
        true_xywh=true_xywh[true_order],
        crowds=np.array([bool(a.get("iscrowd", 0)) for a in true], dtype=bool)[true_order],
        first_found=np.searchsorted(images[order], positions),
        labels=labels[order],
        xywh=xywh[order],
        scores=scores[order],
    )


def require_finite_results(results: Iterable[Mapping[str, Any]]) -> None:
    """Raise if a result has a score or box that is not finite.

    Raises:
        NotFiniteError: names the first such result.
    """
    for number, result in enumerate(results):
        # The sum of finite numbers could overflow only beyond 1e308, and NaN and infinity stay in it.
        if not math.isfinite(result["score"] + sum(result["bbox"])):
            raise NotFiniteError(
                f"results[{number}] (image {result['image_id']}, category {result['category_id']}): score "
                f"{result['score']} and bbox {list(result['bbox'])} must be finite. Check the model's weights, and run "
                "it with --amp off"
            )


def _arrays(
    entries: list[Any], image_of: Mapping[int, int], label_of: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images [N], labels [N] and boxes [N, 4] of entries of a COCO file."""
    return (
        np.array([image_of[entry["image_id"]] for entry in entries], dtype=np.int64),
        np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int64),
        np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
    )
