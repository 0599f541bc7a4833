"""Classify what detections get wrong at a threshold: missed, wrong class, poor box, duplicate, false alarm."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from dino.data.statistics import AREAS
from dino.evaluation.matching import IGNORED, IOU, best_pairs, iou_matrix, match_by_class
from dino.evaluation.sample import Sample

NEAR = 0.1
"""Intersection over union from which a detection counts as near an object."""
BACKGROUND = -1
"""Label of no object, in confusions."""


class Kind(StrEnum):
    """What becomes of a true box or a detection. Each error is of one kind and counts once."""

    FOUND = "found"
    """A true box, and a detection of its class with IoU 0.5 or more."""
    MISSED = "missed"
    """A true box without any of these."""
    WRONG_CLASS = "wrong class"
    """A true box, and a detection of another class with IoU 0.5 or more."""
    POOR_BOX = "poor box"
    """A true box, and a detection of its class with IoU 0.1 to 0.5."""
    DUPLICATE = "duplicate"
    """A detection with IoU 0.5 or more with a true box that has another detection."""
    FALSE_ALARM = "false alarm"
    """A detection with none of these."""


ERRORS = tuple(kind for kind in Kind if kind is not Kind.FOUND)


@dataclass(frozen=True)
class Mark:
    """A true box or a detection, and what became of it."""

    kind: Kind
    label: int
    xywh: tuple[float, float, float, float]
    score: float | None = None
    """None for a true box."""
    other: int | None = None
    """Label of the other box of a wrong class."""


@dataclass(frozen=True)
class Picture:
    """The boxes of one image. Crowds, and detections on them, are left out."""

    image_id: int
    true: list[Mark]
    found: list[Mark]

    @property
    def num_errors(self) -> int:
        """Errors, each counted once."""
        kinds = Counter(mark.kind for mark in self.found) + Counter(
            mark.kind for mark in self.true if mark.kind is Kind.MISSED
        )
        return sum(count for kind, count in kinds.items() if kind is not Kind.FOUND)


@dataclass
class Errors:
    """Counts over all images."""

    true: dict[Kind, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in Kind})
    """True boxes of each label by what became of them: found, missed, wrong class, poor box."""
    found: dict[Kind, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in Kind})
    """Detections of each label by what they are: found, wrong class, poor box, duplicate, false alarm."""
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Boxes by (true label, detected label); poor boxes are (label, `BACKGROUND`) and (`BACKGROUND`, label)."""
    iou_sum: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of the IoU of the boxes found of each label."""
    sizes: Counter[int] = field(default_factory=Counter)
    """True boxes that are small (0), medium (1) and large (2)."""
    sizes_found: Counter[int] = field(default_factory=Counter)
    """True boxes found, by size."""
    worst: list[Picture] = field(default_factory=list)
    """The images with most errors, the worst first."""
    images_with_errors: int = 0

    def count(self, kind: Kind) -> int:
        """Return the number of errors of a kind."""
        return sum((self.true if kind is Kind.MISSED else self.found)[kind].values())


def find_errors(
    sample: Sample,
    matched: np.ndarray,  # [D] of match_by_class
    thresholds: np.ndarray,  # [C] lowest score of each label
    most_pictures: int,
) -> Errors:
    """Classify every true box, and every detection whose score reaches its label's threshold."""
    errors = Errors()
    worst: list[tuple[int, int, Picture]] = []
    for image in range(len(sample.image_ids)):
        picture = _classify(sample, matched, thresholds, image, errors)
        count = picture.num_errors
        errors.images_with_errors += count > 0
        if count:
            heapq.heappush(worst, (count, -image, picture))  # the first of equally bad ones
            if len(worst) > most_pictures:
                heapq.heappop(worst)
    errors.worst = [picture for *_, picture in sorted(worst, key=lambda entry: entry[:2], reverse=True)]
    return errors


def judge(sample: Sample, threshold: float) -> list[Picture]:
    """Classify the boxes of every image at one threshold, in the order of the sample's images."""
    matched, thresholds = match_by_class(sample), np.full(sample.categories.num_classes, threshold)
    return [_classify(sample, matched, thresholds, image, Errors()) for image in range(len(sample.image_ids))]


def _classify(sample: Sample, matched: np.ndarray, thresholds: np.ndarray, image: int, errors: Errors) -> Picture:
    """Return the boxes of an image with their kinds, and add them to `errors`."""
    start, true = sample.found_in(image).start, sample.true_in(image)
    here = sample.found_in(image)
    chosen = start + np.flatnonzero(
        (sample.scores[here] >= thresholds[sample.labels[here]]) & (matched[here] != IGNORED)
    )
    real = true.start + np.flatnonzero(~sample.crowds[true])
    labels, true_labels = sample.labels[chosen], sample.true_labels[real]
    iou = iou_matrix(sample.xywh[chosen], sample.true_xywh[real], np.zeros(len(real), dtype=bool))

    partner: dict[int, int] = {}  # true box of a detection
    kinds: dict[int, Kind] = {}  # of detections
    position = {int(t): k for k, t in enumerate(real)}
    for d in np.flatnonzero(matched[chosen] >= 0):
        partner[int(d)], kinds[int(d)] = position[int(matched[chosen[d]])], Kind.FOUND
    same = np.equal(labels[:, None], true_labels[None])
    # The classes of the others differ if they overlap enough: equal ones have been matched, or are duplicates.
    for kind, allowed, least in ((Kind.WRONG_CLASS, ~same, IOU), (Kind.POOR_BOX, same & (iou < IOU), NEAR)):
        free = np.where(allowed, iou, 0.0)
        free[list(partner)] = 0
        free[:, list(partner.values())] = 0
        for d, t in best_pairs(free, least):
            partner[d], kinds[d] = t, kind
    overlaps = set(np.flatnonzero((iou >= IOU).any(1)).tolist())
    for d in range(len(chosen)):
        kinds.setdefault(d, Kind.DUPLICATE if d in overlaps else Kind.FALSE_ALARM)

    found_by = {t: d for d, t in partner.items()}
    true_marks = []
    for t, label in enumerate(true_labels.tolist()):
        d = found_by.get(t)
        kind = Kind.MISSED if d is None else kinds[d]
        other = int(labels[d]) if d is not None and kind is Kind.WRONG_CLASS else None
        true_marks.append(Mark(kind, label, _box(sample.true_xywh[real[t]]), other=other))
        errors.true[kind][label] += 1
        on_object = kind in (Kind.FOUND, Kind.WRONG_CLASS) and d is not None
        errors.confusions[label, int(labels[d]) if on_object else BACKGROUND] += 1
        size = int(np.searchsorted(AREAS, sample.true_xywh[real[t], 2:].prod()))
        errors.sizes[size] += 1
        if kind is Kind.FOUND and d is not None:
            errors.sizes_found[size] += 1
            errors.iou_sum[label] += float(iou[d, t])
    found_marks = []
    for d, label in enumerate(labels.tolist()):
        other = int(true_labels[partner[d]]) if kinds[d] is Kind.WRONG_CLASS else None
        box, score = _box(sample.xywh[chosen[d]]), float(sample.scores[chosen[d]])
        found_marks.append(Mark(kinds[d], label, box, score, other))
        errors.found[kinds[d]][label] += 1
        if kinds[d] not in (Kind.FOUND, Kind.WRONG_CLASS):
            errors.confusions[BACKGROUND, label] += 1
    return Picture(int(sample.image_ids[image]), true_marks, found_marks)


def _box(xywh: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = xywh.tolist()
    return x, y, width, height
