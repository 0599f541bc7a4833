"""Made-up true boxes and detections, in COCO's formats."""

from __future__ import annotations

import random
from typing import Any

Results = list[dict[str, Any]]


def document(boxes: list[tuple[int, int, list[float]]], categories: dict[int, str], images: int = 1) -> dict[str, Any]:
    """A COCO document of (image id, category id, box); images are numbered from 0. A fifth number of a box: a crowd."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 100} for i in range(images)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box[:4], "iscrowd": int(len(box) > 4)}
            for k, (image, category, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }


def results(found: list[tuple[int, int, list[float], float]]) -> Results:
    """Entries of a COCO result file of (image id, category id, box, score)."""
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in found]


def scene(seed: int, images: int = 12, classes: int = 3, digits: int = 1) -> tuple[dict[str, Any], Results]:
    """Random boxes, some crowds, some without width, and detections of every kind; scores of few digits are equal."""
    rng = random.Random(seed)
    boxes, found = [], []
    for image in range(images):
        for _ in range(rng.randint(0, 7)):
            box = [rng.uniform(0, 100), rng.uniform(0, 60), rng.uniform(5, 90), rng.uniform(5, 40)]
            if rng.random() < 0.05:
                box[2] = 0.0
            category = rng.randrange(classes)
            boxes.append((image, category, [*box, 1] if rng.random() < 0.1 else box))
            for _ in range(rng.randint(0, 4)):
                moved = [max(0.0, value + rng.choice([0, rng.gauss(0, 4), rng.gauss(0, 20)])) for value in box]
                label = category if rng.random() < 0.8 else rng.randrange(classes)
                found.append((image, label, moved, round(rng.random(), digits)))
    rng.shuffle(found)
    return document(boxes, {c: f"class {c}" for c in range(classes)}, images), results(found)
