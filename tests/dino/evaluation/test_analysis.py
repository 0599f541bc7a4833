"""Curves, best thresholds and kinds of errors: against COCO's numbers, a search, and cases made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dino.common.finite import NotFiniteError
from dino.data import Categories
from dino.evaluation.analysis import analyse
from dino.evaluation.coco_metrics import score
from dino.evaluation.errors import BACKGROUND, ERRORS, Kind
from dino.evaluation.matching import iou_matrix
from tests.dino.evaluation.analysis_toys import document, results, scene

BOX, HALF, FAR = [10.0, 10, 40, 40], [30.0, 10, 40, 40], [120.0, 40, 40, 40]  # IoU 1/3 and 0 with the first
NAMES = {1: "cat", 2: "dog", 3: "cow"}


@pytest.mark.parametrize("digits", [1, 6], ids=["equal scores", "different scores"])
@pytest.mark.parametrize("seed", range(6))
def test_the_curve_of_precision_is_cocos(seed, digits):
    truth, found = scene(seed, digits=digits)
    metrics, analysis = score(found, range(12), truth), analyse(found, range(12), truth)
    assert analysis.mean_precision.mean() == pytest.approx(metrics.AP50, abs=1e-12)
    for result in analysis.classes:
        one = [entry for entry in found if entry["category_id"] == result.label]
        alone = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == result.label]}
        assert result.curve.ap50 == pytest.approx(score(one, range(12), alone).AP50, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_has_a_higher_f1(seed):
    truth, found = scene(seed)
    for result in analyse(found, range(12), truth).classes:
        best, point = result.curve.best, result.point
        assert best is not None
        for threshold in {entry["score"] for entry in found}:
            kept = [e for e in found if e["score"] >= threshold and e["category_id"] == result.label]
            lower = analyse(kept, range(12), truth).classes[result.label]
            assert lower.curve.f1[0] <= best.f1 + 1e-12  # of all that are left
        assert (point.precision, point.recall, point.f1) == pytest.approx((best.precision, best.recall, best.f1))


@pytest.mark.parametrize("seed", range(6))
def test_every_box_has_one_kind(seed):
    truth, found = scene(seed)
    analysis = analyse(found, range(12), truth, most_pictures=99)
    true, detected = analysis.errors.true, analysis.errors.found
    assert sum(map(sum, (kind.values() for kind in true.values()))) == analysis.pooled.num_true
    for kind in (Kind.FOUND, Kind.WRONG_CLASS, Kind.POOR_BOX):  # a true box and a detection each
        assert true[kind].total() == detected[kind].total()
    assert true[Kind.FOUND] == detected[Kind.FOUND]
    total = sum(analysis.errors.count(kind) for kind in ERRORS)
    assert total == sum(result.num_errors for result in analysis.classes) > 0
    assert total == sum(picture.num_errors for picture in analysis.errors.worst)
    assert [p.num_errors for p in analysis.errors.worst] == sorted(p.num_errors for p in analysis.errors.worst)[::-1]
    rows = dict.fromkeys(range(3), 0)
    for (label, _), count in analysis.errors.confusions.items():
        if label != BACKGROUND:
            rows[label] += count
    assert list(rows.values()) == analysis.num_true


@pytest.mark.parametrize(
    ("true", "found", "errors", "confusions"),
    [
        ([(1, BOX)], [(1, BOX, 0.9)], {}, {("cat", "cat"): 1}),
        ([(1, BOX), (1, FAR)], [(1, BOX, 0.9)], {"missed": 1}, {("cat", "cat"): 1, ("cat", "background"): 1}),
        (
            [(1, BOX), (2, FAR)],
            [(1, BOX, 0.9), (1, FAR, 0.9)],
            {"wrong class": 1},
            {("cat", "cat"): 1, ("dog", "cat"): 1},
        ),
        (
            [(1, FAR), (1, BOX)],
            [(1, FAR, 0.9), (1, HALF, 0.9)],
            {"poor box": 1},
            {("cat", "cat"): 1, ("cat", "background"): 1, ("background", "cat"): 1},
        ),
        ([(1, BOX)], [(1, BOX, 0.9), (1, BOX, 0.9)], {"duplicate": 1}, {("cat", "cat"): 1, ("background", "cat"): 1}),
        # A second class on an object that is found: two detections of one object.
        (
            [(1, BOX), (2, FAR)],
            [(1, BOX, 0.9), (2, FAR, 0.5), (2, BOX, 0.6)],
            {"duplicate": 1},
            {("cat", "cat"): 1, ("dog", "dog"): 1, ("background", "dog"): 1},
        ),
        ([(1, BOX)], [(1, BOX, 0.5), (1, FAR, 0.5)], {"false alarm": 1}, {("cat", "cat"): 1, ("background", "cat"): 1}),
        # The right detection has the lower score of two on one object of another class.
        ([(1, BOX), (2, BOX)], [(1, BOX, 0.9), (2, BOX, 0.8)], {}, {("cat", "cat"): 1, ("dog", "dog"): 1}),
        ([(1, BOX), (1, [*FAR, 1])], [(1, BOX, 0.9), (1, FAR, 0.9), (1, FAR, 0.9)], {}, {("cat", "cat"): 1}),
        (
            [(1, BOX), (1, [50, 50, 0, 9])],
            [(1, BOX, 0.9)],
            {"missed": 1},
            {("cat", "cat"): 1, ("cat", "background"): 1},
        ),
    ],
    ids=["right", "missed", "wrong class", "poor box", "duplicate", "second class", "false alarm", "two on one place",
         "crowd", "no width"],
)  # fmt: skip
def test_errors_are_of_the_kind_that_helps(true, found, errors, confusions):
    truth = document([(0, c, box) for c, box in true], NAMES)
    analysis = analyse(results([(0, *entry) for entry in found]), [0], truth)
    assert {kind.value: n for kind in ERRORS if (n := analysis.errors.count(kind))} == errors
    named = {(analysis.title(a), analysis.title(b)): n for (a, b), n in analysis.errors.confusions.items()}
    assert named == confusions


def test_the_iou_of_boxes_without_extent_is_zero():
    empty = np.array([[5.0, 5, 0, 0], [5, 5, 0, 9]])
    assert not iou_matrix(empty, empty, np.array([False, True])).any()


def test_the_best_threshold_takes_equal_scores_together_and_is_a_short_number():
    truth = document([(0, 1, BOX)], NAMES)
    found = [(0, 1, BOX, 0.7), (0, 1, FAR, 0.7), (0, 1, FAR, 0.12)]
    (cat,) = analyse(results(found), [0], truth).classes
    assert cat.curve.best is not None
    assert (cat.curve.best.threshold, cat.curve.best.precision, cat.curve.best.recall) == (0.41, 0.5, 1.0)
    close = [(0, 1, BOX, 0.70001), (0, 1, FAR, 0.7)]
    (cat,) = analyse(results(close), [0], truth).classes
    assert cat.curve.best is not None and 0.7 < cat.curve.best.threshold <= 0.70001


def test_a_class_that_is_never_right_is_judged_at_the_threshold_of_all():
    truth = document([(0, 1, BOX), (0, 2, FAR)], NAMES)
    analysis = analyse(results([(0, 1, BOX, 0.8), (0, 3, FAR, 0.9), (0, 3, BOX, 0.1)]), [0], truth)
    assert analysis.thresholds == {1: 0.4}
    assert [r.point.threshold for r in analysis.classes] == [0.4, 0.45, 0.45]  # in the middle of 0.8 and 0.1
    assert analysis.classes[2].found[Kind.WRONG_CLASS] == 1


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        (document([], NAMES), [], (0, 0, None)),
        (document([], NAMES), [(0, 1, BOX, 0.9)], (0, 1, None)),
        (document([(0, 1, BOX)], NAMES), [], (1, 1, None)),
        (document([(0, 1, BOX)], NAMES), [(0, 1, FAR, 0.9)], (1, 2, None)),
        (document([(0, 0, BOX)], {0: "cat"}), [(0, 0, BOX, 0.9)], (1, 0, 0.45)),
        (document([(0, 2**40, BOX)], {0: "cat", 2**40: "dog"}), [(0, 2**40, BOX, 0.9)], (1, 0, 0.45)),
        (document([(0, 7, BOX)], {k: f"class {k}" for k in range(400)}), [(0, 7, BOX, 0.9)], (1, 0, 0.45)),
        (document([(0, 1, BOX)], NAMES), [(0, 1, BOX, 1.0)], (1, 0, 0.5)),
        (document([(0, 1, BOX)], NAMES), [(0, 1, BOX, 0.0)], (1, 0, 0.0)),
        (document([(0, 1, [0, 0, 1e6, 1e6])], NAMES), [(0, 1, [0.0, 0, 1e6, 1e6], 0.9)], (1, 0, 0.45)),
        (document([(0, 1, [0, 0, 1e-6, 1e-6])], NAMES), [(0, 1, [0.0, 0, 1e-6, 1e-6], 0.9)], (1, 0, 0.45)),
    ],
    ids=["nothing", "no boxes", "no detections", "all wrong", "one class, id 0", "ids 0 and 2**40", "400 classes",
         "score 1", "score 0", "huge", "tiny"],
)  # fmt: skip
def test_edges(truth, found, expected):
    analysis = analyse(results(found), [0], truth)
    metrics = score(results(found), [0], truth)
    errors = sum(analysis.errors.count(kind) for kind in ERRORS)
    best = analysis.pooled.best
    assert (metrics.num_boxes, errors, best and best.threshold) == expected
    assert list(metrics.per_class) == list(analysis.categories.titles)


def test_classes_of_one_name_are_one_row_each():
    truth = document([(0, 1, BOX), (0, 2, FAR)], {1: "car", 2: "car", 3: "bus"})
    found = results([(0, 1, BOX, 0.9), (0, 1, FAR, 0.8)])
    metrics = score(found, [0], truth)
    assert metrics.per_class == pytest.approx({"car (id 1)": 1.0, "car (id 2)": 0.0, "bus": math.nan}, nan_ok=True)
    assert [result.title for result in analyse(found, [0], truth).classes] == ["car (id 1)", "car (id 2)"]


def test_titles_are_those_of_the_models_categories():
    truth = document([(0, 1, BOX)], {1: "car"})
    model = Categories((1, 2), ("car", "car"))
    assert list(score([], [0], truth, model).per_class) == ["car (id 1)"]
    analysis = analyse(results([(0, 2, BOX, 0.9)]), [0], truth, model)
    assert analysis.title(0) == "car (id 1)" and analysis.errors.count(Kind.WRONG_CLASS) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "bbox"])
def test_results_that_are_not_finite_are_named(value, where):
    found = results([(0, 1, BOX, 0.9), (0, 1, list(BOX), 0.9)])
    if where == "score":
        found[1]["score"] = value
    else:
        found[1]["bbox"][2] = value
    for function in (score, analyse):
        with pytest.raises(NotFiniteError, match=r"results\[1\] \(image 0, category 1\): .* must be finite"):
            function(found, [0], document([(0, 1, BOX)], NAMES))


def test_only_the_worst_images_are_kept():
    truth = document([(i, 1, BOX) for i in range(9) for _ in range(i)], NAMES, 9)
    errors = analyse([], range(9), truth, most_pictures=3).errors
    assert [picture.image_id for picture in errors.worst] == [8, 7, 6] and errors.images_with_errors == 8
