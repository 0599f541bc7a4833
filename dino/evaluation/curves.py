"""Precision, recall and F1 over the threshold, and the threshold of the best F1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dino.evaluation.matching import IGNORED
from dino.evaluation.sample import Sample

RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = np.linspace(0, 1, 101)
_EPSILON = np.spacing(1)  # as COCO divides


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it gives."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of one class, or of all classes together, at IoU 0.5."""

    num_true: int
    precision: np.ndarray  # [101] the highest precision at each recall of RECALLS or more, as COCO averages it
    f1: np.ndarray  # [101] at each threshold of THRESHOLDS
    best: OperatingPoint | None
    """The highest F1, of equal ones that of the highest threshold; None if no detection is right."""

    @property
    def ap50(self) -> float:
        """Average precision at IoU 0.5; NaN without true boxes."""
        return float(self.precision.mean()) if self.num_true else math.nan


def class_curves(sample: Sample, matched: np.ndarray) -> list[Curve]:
    """Return the curve of each label; `matched` is that of `match_by_class`."""
    order = np.argsort(sample.labels, kind="stable")
    bounds = np.searchsorted(sample.labels[order], np.arange(sample.categories.num_classes + 1))
    counts = sample.num_true.tolist()
    return [
        _curve(sample.scores[here], matched[here], count)
        for count, here in zip(counts, np.split(order, bounds[1:-1]), strict=True)
    ]


def pooled_curve(sample: Sample, matched: np.ndarray) -> Curve:
    """Return the curve of the boxes of all classes together, with one threshold for all."""
    return _curve(sample.scores, matched, int(sample.num_true.sum()))


def _curve(scores: np.ndarray, matched: np.ndarray, num_true: int) -> Curve:
    counted = matched != IGNORED
    order = np.argsort(-scores[counted], kind="stable")
    scores = scores[counted][order]
    right = np.cumsum(matched[counted][order] >= 0)
    taken = np.arange(1, len(scores) + 1)
    recall = right / max(num_true, 1)
    falling = np.maximum.accumulate((right / (taken + _EPSILON))[::-1])[::-1]
    precision = np.append(falling, 0.0)[np.searchsorted(recall, RECALLS)]
    f1 = np.append(0.0, 2 * right / np.maximum(taken + num_true, 1))  # of the first 0, 1, ... detections
    at_thresholds = f1[np.searchsorted(-scores, -THRESHOLDS, side="right")]
    return Curve(num_true, precision, at_thresholds, _best(scores, right, f1[1:], num_true))


def _best(scores: np.ndarray, right: np.ndarray, f1: np.ndarray, num_true: int) -> OperatingPoint | None:
    if not len(scores) or right[-1] == 0:
        return None
    # A threshold takes all detections of equal score or none.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    best = int(last[f1[last].argmax()])
    below = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    return OperatingPoint(
        threshold=_between(below, float(scores[best])),
        precision=float(right[best] / (best + 1)),
        recall=float(right[best] / num_true),
        f1=float(f1[best]),
    )


def _between(below: float, above: float) -> float:
    """Return the shortest decimal near the middle that is above `below` and at most `above`, from two digits on."""
    middle = (below + above) / 2
    rounded = (round(middle, digits) for digits in range(2, 17))
    return next((value for value in rounded if below < value <= above), above)
