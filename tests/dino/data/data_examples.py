"""A small COCO data set to write, damage and load."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino.data import CocoIndex

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 12, "file_name": "cat.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "dog.jpg", "width": 50, "height": 70},
        {"id": 700, "file_name": "nothing.png", "width": 40, "height": 40},
    ],
    "annotations": [
        {"id": 4711, "image_id": 12, "category_id": 17, "bbox": [3, 9, 20, 5], "area": 90, "iscrowd": 0},
        {"id": 4712, "image_id": 3, "category_id": 18, "bbox": [10.5, 20.25, 30, 40]},
        {"id": 4713, "image_id": 12, "category_id": 18, "bbox": [0, 0, 64, 48], "area": 3000.5, "iscrowd": 1},
        {"id": 4714, "image_id": 12, "category_id": 17, "bbox": [50, 30, 20, 30], "area": 600, "iscrowd": 0},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
}


def document() -> dict[str, Any]:
    """A copy of DOCUMENT to change."""
    return copy.deepcopy(DOCUMENT)


def write_images(folder: Path, images: list[dict[str, Any]]) -> None:
    """Noise of the stated sizes; the same for the same id."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        rng = np.random.default_rng(image["id"])
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])


def load_coco(folder: Path, content: dict[str, Any], *, skip_invalid: bool = False) -> CocoIndex:
    """Write a COCO file beside `images/` and load it."""
    (folder / "train.json").write_text(json.dumps(content))
    return CocoIndex.load(folder / "train.json", folder / "images", skip_invalid=skip_invalid)


def write_split(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Images and `_annotations.coco.json` in one folder; returns the annotation file."""
    content = document() if content is None else content
    write_images(folder, content["images"])
    file = folder / "_annotations.coco.json"
    file.write_text(json.dumps(content))
    return file


def numbered_split(folder: Path, count: int, size: int = 32) -> Path:
    """`count` images with ids 1000, 1001, ..., each with as many boxes as its index modulo 3."""
    images = [{"id": 1000 + k, "file_name": f"{k}.png", "width": size, "height": size + k % 4} for k in range(count)]
    annotations = [
        {"id": 10 * k + j + 1, "image_id": 1000 + k, "category_id": 17 + j, "bbox": [2 + j, 3, 10, 12 + j]}
        for k in range(count)
        for j in range(k % 3)
    ]
    return write_split(
        folder, {"images": images, "annotations": annotations, "categories": copy.deepcopy(DOCUMENT["categories"])}
    )
