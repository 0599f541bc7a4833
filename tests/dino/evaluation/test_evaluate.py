"""Average precision: against a second implementation, at the edges, and over several processes."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from dino.common.distributed import joined_ranks
from dino.evaluation.coco_metrics import METRIC_NAMES, CocoMetrics, score
from dino.evaluation.evaluate import coco_results, evaluate, predict_results
from tests.dino.tools_toys import CATEGORIES, Recited, batches, ground_truth
from tests.dino.training.train_toys import run_ranks


def run(detections, image_ids, truth, batch_size=1, **options):
    model = Recited(detections, CATEGORIES.num_classes)
    loader = batches(image_ids, batch_size=batch_size)
    return evaluate(model, loader, truth, CATEGORIES, device="cpu", progress=False, **options)


def test_perfect_detections_score_one():
    truth = ground_truth([(5, 3, [20, 10, 100, 50]), (9, 40, [0, 0, 200, 100])], [5, 9])
    found = [([[0.1, 0.1, 0.6, 0.6]], [0.9], [0]), ([[0.0, 0.0, 1.0, 1.0]], [0.8], [2])]
    metrics = run(found, [5, 9], truth)
    assert pytest.approx((1, 1, 1, 1, 1)) == (metrics.AP, metrics.AP50, metrics.AP75, metrics.AR1, metrics.AR100)
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": math.nan, "a horse": 1.0}, nan_ok=True)
    assert (metrics.num_images, metrics.num_boxes) == (2, 2)


def test_labels_are_written_as_category_ids():
    model = Recited([([[0.1, 0.2, 0.5, 0.6]] * 3, [0.9, 0.8, 0.7], [2, 0, 1])], 3)
    results, ids = predict_results(model, batches([77]), CATEGORIES, device="cpu", top_k=3, progress=False)
    assert ids == [77]
    assert [result["category_id"] for result in results] == [40, 3, 7]
    assert results[0]["bbox"] == pytest.approx([20, 20, 80, 40], abs=1e-4)
    assert results[0]["score"] == pytest.approx(0.9)


def test_batches_of_two_give_what_batches_of_one_give():
    truth = ground_truth([(i, 3, [20, 10, 100, 50]) for i in (1, 2, 3, 4)], [1, 2, 3, 4])
    found = [([[0.1, 0.1, 0.6, 0.6 - 0.05 * i]], [0.9 - 0.1 * i], [0]) for i in range(4)]
    assert run(found, [1, 2, 3, 4], truth, batch_size=2) == run(found, [1, 2, 3, 4], truth)


def test_no_detection_scores_zero_and_no_ground_truth_is_not_a_number():
    nothing = ([], [], [])
    assert run([nothing], [5], ground_truth([(5, 3, [20, 10, 100, 50])], [5])).AP == 0
    metrics = run([([[0.1, 0.1, 0.6, 0.6]], [0.9], [0])], [5], ground_truth([], [5]))
    assert all(math.isnan(value) for value in metrics.summary().values())
    assert metrics.num_boxes == 0


def test_an_image_without_boxes_counts_false_positives():
    truth = ground_truth([(5, 3, [20, 10, 100, 50])], [5, 9])
    right = ([[0.1, 0.1, 0.6, 0.6]], [0.5], [0])
    assert pytest.approx(1) == run([right, ([], [], [])], [5, 9], truth).AP
    assert pytest.approx(0.5) == run([right, ([[0.1, 0.1, 0.6, 0.6]], [0.9], [0])], [5, 9], truth).AP


def test_a_detection_on_a_crowd_is_no_mistake():
    truth = ground_truth([(5, 3, [20, 10, 60, 50])], [5], iscrowd=0)
    truth["annotations"].append({"id": 9, "image_id": 5, "category_id": 3, "bbox": [100, 0, 100, 100], "iscrowd": 1})
    found = ([[0.6, 0.1, 0.9, 0.9], [0.1, 0.1, 0.4, 0.6]], [0.9, 0.5], [0, 0])
    metrics = run([found], [5], truth)
    assert pytest.approx(1) == metrics.AP
    assert metrics.num_boxes == 1


def test_an_annotation_of_id_zero_can_be_found():
    truth = ground_truth([(5, 3, [20, 10, 100, 50])], [5])
    assert truth["annotations"][0]["id"] == 0
    assert pytest.approx(1) == run([([[0.1, 0.1, 0.6, 0.6]], [0.9], [0])], [5], truth).AP


def test_the_area_of_the_file_decides_the_size_class():
    box = [20.0, 10.0, 40.0, 40.0]
    found = ([[0.1, 0.1, 0.3, 0.5]], [0.9], [0])
    by_box = run([found], [5], ground_truth([(5, 3, box)], [5]))
    by_area = run([found], [5], ground_truth([(5, 3, box)], [5], area=500.0))
    assert by_box.AP_medium == pytest.approx(1) and math.isnan(by_box.AP_small)
    assert by_area.AP_small == pytest.approx(1) and math.isnan(by_area.AP_medium)


def test_only_images_of_the_loader_are_scored():
    truth = ground_truth([(5, 3, [20, 10, 100, 50]), (9, 3, [20, 10, 100, 50])], [5, 9])
    metrics = run([([[0.1, 0.1, 0.6, 0.6]], [0.9], [0])], [5], truth)
    assert (metrics.AP, metrics.num_images, metrics.num_boxes) == (pytest.approx(1), 1, 1)


def test_an_image_that_the_ground_truth_lacks_is_an_error():
    with pytest.raises(ValueError, match="not in the ground truth: 6"):
        run([([], [], [])], [6], ground_truth([], [5]))
    with pytest.raises(ValueError, match="must not be empty"):
        score([], [], ground_truth([], [5]))


def test_the_training_mode_comes_back_also_after_an_error():
    model = Recited([([], [], [])], 3).train()
    predict_results(model, batches([1]), CATEGORIES, device="cpu", progress=False)
    assert model.modes == [False] and model.training
    with pytest.raises(IndexError):
        predict_results(model, batches([1]), CATEGORIES, device="cpu", progress=False)
    assert model.training
    model.eval()
    with pytest.raises(ValueError, match="amp must be one of"):
        predict_results(model, batches([1]), CATEGORIES, device="cpu", amp="half", progress=False)  # type: ignore[arg-type]


def test_ground_truth_may_be_a_file(tmp_path):
    truth = ground_truth([(5, 3, [20, 10, 100, 50])], [5])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = coco_results(5, torch.tensor([[20.0, 10, 120, 60]]), torch.tensor([0.5]), [3])
    assert score(results, [5], tmp_path / "truth.json") == score(results, [5], truth)
    other = json.loads(json.dumps(truth))
    other["images"][0]["id"] = "5"
    other["annotations"][0] |= {"image_id": 5.0, "iscrowd": None, "area": None, "bbox": ["20", 10, 100.0, "50"]}
    (tmp_path / "truth.json").write_text(json.dumps(other))
    assert score(results, [5], tmp_path / "truth.json") == score(results, [5], truth)  # read as the data of a training


def test_json_has_no_nan_and_the_table_has_all_numbers():
    metrics = run([([[0.1, 0.1, 0.6, 0.6]], [0.9], [0])], [5], ground_truth([(5, 3, [20, 10, 100, 50])], [5]))
    parsed = json.loads(metrics.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["AP"] == pytest.approx(1) and parsed["AP_small"] is None and parsed["per_class"]["dog"] is None
    lines = metrics.table().splitlines()
    assert lines[0] == "1 image, 1 box; per cent"
    assert lines[2].split() == ["100.0", "100.0", "100.0", "-", "100.0", "-"]
    assert "  cat      100.0" in lines and "  a horse      -" in lines
    assert max(map(len, lines)) <= 80


def average_precision(truth, results, iou_threshold):
    """The definition, for one class: greedy matching by falling score, precision made monotone, 101 recall points."""
    order = sorted(results, key=lambda r: -r["score"])
    used, hits = set(), []
    for result in order:
        best, best_iou = None, iou_threshold
        for k, (image, _, box) in enumerate(truth):
            if image == result["image_id"] and k not in used and overlap(box, result["bbox"]) >= best_iou:
                best, best_iou = k, overlap(box, result["bbox"])
        if best is not None:
            used.add(best)
        hits.append(best is not None)
    positives = np.cumsum(hits)
    recall = positives / len(truth)
    precision = np.maximum.accumulate((positives / np.arange(1, len(hits) + 1))[::-1])[::-1]
    index = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([float(precision[i]) if i < len(precision) else 0.0 for i in index])), recall[-1]


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_agree_with_the_definition(seed):
    rng = random.Random(seed)
    truth, results = [], []
    for image in range(1, 7):
        for _ in range(rng.randint(0, 5)):
            box = [rng.uniform(0, 100), rng.uniform(0, 60), rng.uniform(10, 90), rng.uniform(10, 40)]
            truth.append((image, 3, box))
            for _ in range(rng.randint(0, 3)):
                moved = [max(1.0, value + rng.gauss(0, 4)) for value in box]
                results.append({"image_id": image, "category_id": 3, "bbox": moved, "score": rng.random()})
    metrics = score(results, range(1, 7), ground_truth(truth, list(range(1, 7))))
    expected = [average_precision(truth, results, threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    assert pytest.approx(np.mean([ap for ap, _ in expected]), abs=1e-9) == metrics.AP
    assert pytest.approx(expected[0][0], abs=1e-9) == metrics.AP50
    assert pytest.approx(expected[5][0], abs=1e-9) == metrics.AP75
    assert pytest.approx(np.mean([recall for _, recall in expected]), abs=1e-9) == metrics.AR100


def test_the_twelve_numbers_are_fields_in_cocos_order():
    assert tuple(CocoMetrics.__dataclass_fields__)[:12] == METRIC_NAMES
    assert METRIC_NAMES[:6] == ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    assert METRIC_NAMES[6:] == ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def evaluate_one_of_two() -> None:
    with joined_ranks("cpu") as ranks:
        truth = ground_truth([(i, 3, [20, 10, 100, 50]) for i in (1, 2, 3)], [1, 2, 3])
        ids = ([1, 3], [2, 1])[ranks.rank]  # image 1 is repeated, so that both processes have equally many
        found = [([[0.1, 0.1, 0.6, 0.6 if i < 3 else 0.2]], [0.9 - 0.1 * i], [0]) for i in ids]
        metrics = evaluate(Recited(found, 3), batches(ids), truth, CATEGORIES, device="cpu", progress=False)
    assert (metrics.num_images, metrics.num_boxes) == (3, 3)
    # Two of three are found: precision 1 up to the recall of 2/3, which 67 of the 101 points reach.
    assert pytest.approx(67 / 101) == metrics.AP


def test_processes_share_the_work_and_agree_on_the_result():
    run_ranks(2, evaluate_one_of_two)
