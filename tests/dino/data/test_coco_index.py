"""The index of a valid COCO file: images, boxes to train on, ground truth to score against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.dino.data.data_examples import DOCUMENT, document, load_coco, write_images


def test_images_are_sorted_by_id_and_keep_their_annotations(folder: Path) -> None:
    index = load_coco(folder, document())
    assert index.image_ids.tolist() == [3, 12, 700]
    assert index.file_names == ("dog.jpg", "cat.jpg", "nothing.png")
    assert index.sizes_wh.tolist() == [[50, 70], [64, 48], [40, 40]]
    assert index.categories.to_json() == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert index.columns.num_boxes.tolist() == [1, 3, 0]
    assert index.image_path(1) == folder / "images" / "cat.jpg"
    assert len(index) == 3 and not index.problems and index.describe_problems() == []


def test_training_boxes_are_clipped_corners_without_crowds(folder: Path) -> None:
    index = load_coco(folder, document())
    boxes, category_ids = index.training_boxes(1)
    assert boxes.dtype == np.float32 and category_ids.dtype == np.int64
    # The third annotation is a crowd; the fourth reaches over the right and lower edge of 64x48.
    assert boxes.tolist() == [[3, 9, 23, 14], [50, 30, 64, 48]]
    assert category_ids.tolist() == [17, 17]
    assert index.training_boxes(0)[0].tolist() == [[10.5, 20.25, 40.5, 60.25]]
    assert index.training_boxes(2)[0].shape == (0, 4)


@pytest.mark.parametrize("box", [[3, 9, 0, 5], [3, 9, 2, 0], [0, 0, 0, 0], [64, 48, 0, 0], [3, 9, 1e-9, 5]])
def test_boxes_without_extent_are_for_evaluation_only(folder: Path, box: list[float]) -> None:
    content = document()
    content["annotations"][0]["bbox"] = box
    index = load_coco(folder, content)
    assert len(index.training_boxes(1)[0]) == 1
    assert [a["bbox"] for a in index.ground_truth()["annotations"]].count(box) == 1


def test_ground_truth_fills_in_area_and_crowd_and_numbers_from_one(folder: Path) -> None:
    content = document()
    content["annotations"][0]["id"] = 0
    truth = load_coco(folder, content).ground_truth()
    assert truth["annotations"] == [
        {"id": 1, "image_id": 3, "category_id": 18, "bbox": [10.5, 20.25, 30, 40], "area": 1200, "iscrowd": 0},
        {"id": 2, "image_id": 12, "category_id": 17, "bbox": [3, 9, 20, 5], "area": 90, "iscrowd": 0},
        {"id": 3, "image_id": 12, "category_id": 18, "bbox": [0, 0, 64, 48], "area": 3000.5, "iscrowd": 1},
        {"id": 4, "image_id": 12, "category_id": 17, "bbox": [50, 30, 20, 30], "area": 600, "iscrowd": 0},
    ]
    assert [image["id"] for image in truth["images"]] == [3, 12, 700]
    assert json.loads(json.dumps(truth)) == truth


def test_evaluator_gives_the_ground_truth_itself_full_marks(folder: Path) -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    content = document()
    content["annotations"][0]["id"] = 0  # evaluated as it is, an object with this id can never be found
    truth = load_coco(folder, content).ground_truth()
    detections = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in truth["annotations"]
    ]
    reference = faster_coco_eval.COCO(truth)
    evaluation = faster_coco_eval.COCOeval_faster(reference, reference.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_images_in_nested_folders_are_found(folder: Path) -> None:
    content = document()
    for image in content["images"]:
        image["file_name"] = f"a/../part one/./{image['file_name']}"
    write_images(folder / "images" / "part one", DOCUMENT["images"])
    (folder / "images" / "a").mkdir()
    assert len(load_coco(folder, content)) == 3
