"""Match detections with true boxes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dino.evaluation.sample import Sample

IOU = 0.5
"""Intersection over union from which a detection counts as on an object."""
UNMATCHED, IGNORED = -1, -2


def iou_matrix(
    found_xywh: np.ndarray,  # [D, 4]
    true_xywh: np.ndarray,  # [T, 4]
    crowds: np.ndarray,  # [T] bool
) -> np.ndarray:
    """Return the IoU of each pair, [D, T]; with a crowd, the part of the detection inside it. 0 without extent."""
    a, b = found_xywh[:, None], true_xywh[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    area = a[..., 2:].prod(-1)
    union = np.where(crowds, area, area + b[..., 2:].prod(-1) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def match_by_class(sample: Sample) -> np.ndarray:
    """Match the detections of each class by falling score at IoU 0.5, as COCO does.

    A threshold on the scores takes matches away and changes no other.

    Returns:
        [D] int64: the index of the true box, `UNMATCHED`, or `IGNORED` for a detection on a crowd.
    """
    matched = np.full(len(sample.scores), UNMATCHED, dtype=np.int64)
    for image in range(len(sample.image_ids)):
        found, true = sample.found_in(image), sample.true_in(image)
        if found.start == found.stop or true.start == true.stop:
            continue
        crowds = sample.crowds[true]
        iou = iou_matrix(sample.xywh[found], sample.true_xywh[true], crowds)
        iou[sample.labels[found, None] != sample.true_labels[None, true]] = 0
        free = ~crowds
        for d in np.flatnonzero((iou >= IOU).any(1)):
            candidates = np.where(free, iou[d], 0)
            if candidates.max() >= IOU:
                best = len(candidates) - 1 - int(candidates[::-1].argmax())  # the last of equal ones, as COCO does
                free[best] = False
                matched[found.start + d] = true.start + best
            elif (iou[d, crowds] >= IOU).any():
                matched[found.start + d] = IGNORED
    return matched


def best_pairs(iou: np.ndarray, least: float) -> Iterator[tuple[int, int]]:
    """Yield pairs (detection, true box) of an IoU matrix [D, T] by falling IoU of at least `least`, each used once."""
    found, true = np.nonzero(iou >= least)
    used_found, used_true = set(), set()
    for k in np.argsort(-iou[found, true], kind="stable"):
        d, t = int(found[k]), int(true[k])
        if d not in used_found and t not in used_true:
            used_found.add(d)
            used_true.add(t)
            yield d, t
