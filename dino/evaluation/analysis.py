"""Analyse the detections of a model: curves, best thresholds, and errors by class, kind and image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino.data import Categories
from dino.evaluation.coco_metrics import all_categories
from dino.evaluation.curves import Curve, OperatingPoint, class_curves, pooled_curve
from dino.evaluation.errors import BACKGROUND, Errors, Kind, find_errors
from dino.evaluation.matching import match_by_class
from dino.evaluation.sample import build_sample, require_finite_results

# Where no detection is right, no threshold is better than another; this is that of `predict`.
DEFAULT_THRESHOLD = 0.3


@dataclass(frozen=True)
class ClassResult:
    """What became of the true boxes and detections of one class, at its threshold."""

    label: int
    title: str
    curve: Curve
    point: OperatingPoint
    """The threshold used, and precision, recall and F1 there; NaN where there is nothing to divide by."""
    true: dict[Kind, int]
    """True boxes by what became of them."""
    found: dict[Kind, int]
    """Detections by what they are."""
    mean_iou: float
    """Mean IoU of the boxes found; NaN if there is none."""

    @property
    def num_errors(self) -> int:
        """Errors of this class: true boxes that were not found, and detections on no object of their own."""
        lost = sum(self.true[kind] for kind in (Kind.MISSED, Kind.WRONG_CLASS, Kind.POOR_BOX))
        return lost + self.found[Kind.DUPLICATE] + self.found[Kind.FALSE_ALARM]


@dataclass(frozen=True)
class Analysis:
    """The curves and errors of detections on a set of images."""

    categories: Categories
    num_images: int
    num_true: list[int]
    """True boxes of each label, without crowds."""
    classes: list[ClassResult]
    """The classes with a true box or a detection at the threshold, in the order of the labels."""
    pooled: Curve
    """All classes together, with one threshold."""
    errors: Errors
    empty_boxes: int
    """True boxes without width or height, which nothing can find."""

    @property
    def mean_precision(self) -> np.ndarray:
        """Mean over classes of the precision at each recall, [101]; NaN without true boxes. Its mean is AP50."""
        curves = [result.curve.precision for result in self.classes if result.curve.num_true]
        return np.mean(curves, 0) if curves else np.full(101, math.nan)

    @property
    def point(self) -> OperatingPoint:
        """Precision, recall and F1 of all classes together, each class at its own threshold."""
        right = sum(result.found[Kind.FOUND] for result in self.classes)
        detections = sum(sum(result.found.values()) for result in self.classes)
        return _point(math.nan, right, detections, self.pooled.num_true)

    @property
    def thresholds(self) -> dict[int, float]:
        """The best threshold of each category id that has one."""
        points = {result.label: result.curve.best for result in self.classes}
        return {self.categories.ids[label]: point.threshold for label, point in points.items() if point is not None}

    def title(self, label: int) -> str:
        """Return the name of a label to display; "background" for `BACKGROUND`."""
        return "background" if label == BACKGROUND else self.categories.titles[label]


def analyse(
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int],
    ground_truth: Mapping[str, Any],
    categories: Categories | None = None,
    *,
    most_pictures: int = 16,
) -> Analysis:
    """Find the best threshold of each class, and classify the errors there.

    Boxes are matched at IoU 0.5. A class without a right detection is judged at the best threshold of all classes.

    Args:
        results, image_ids: detections in COCO's result format, and the images they were made on.
        ground_truth: the content of a COCO annotation file.
        categories: the model's categories; by default those of the ground truth.
        most_pictures: number of images to keep, those with most errors.

    Raises:
        NotFiniteError: a score or a box of a result is not finite.
    """
    require_finite_results(results)
    sample = build_sample(results, image_ids, ground_truth, all_categories(ground_truth, categories))
    matched = match_by_class(sample)
    pooled, curves = pooled_curve(sample, matched), class_curves(sample, matched)
    overall = DEFAULT_THRESHOLD if pooled.best is None else pooled.best.threshold
    thresholds = np.array([overall if curve.best is None else curve.best.threshold for curve in curves])
    errors = find_errors(sample, matched, thresholds, most_pictures)
    results_by_class = [
        _class_result(label, sample.categories.titles[label], curve, float(threshold), errors)
        for label, (curve, threshold) in enumerate(zip(curves, thresholds, strict=True))
    ]
    real = sample.true_xywh[~sample.crowds]
    return Analysis(
        categories=sample.categories,
        num_images=len(sample.image_ids),
        num_true=sample.num_true.tolist(),
        classes=[result for result in results_by_class if result.curve.num_true or any(result.found.values())],
        pooled=pooled,
        errors=errors,
        empty_boxes=int((real[:, 2:].min(1, initial=math.inf) <= 0).sum()),
    )


def _class_result(label: int, title: str, curve: Curve, threshold: float, errors: Errors) -> ClassResult:
    found = {kind: errors.found[kind][label] for kind in Kind}
    right = found[Kind.FOUND]
    return ClassResult(
        label=label,
        title=title,
        curve=curve,
        point=_point(threshold, right, sum(found.values()), curve.num_true),
        true={kind: errors.true[kind][label] for kind in Kind},
        found=found,
        mean_iou=errors.iou_sum[label] / right if right else math.nan,
    )


def _point(threshold: float, right: int, detections: int, num_true: int) -> OperatingPoint:
    return OperatingPoint(
        threshold,
        precision=right / detections if detections else math.nan,
        recall=right / num_true if num_true else math.nan,
        f1=2 * right / (detections + num_true) if num_true else math.nan,
    )
