"""Annotations that are checked at once are valid if each of them is."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest

from dino.data.coco.at_once import Images, boxes_at_once
from dino.data.coco.checks import check_annotation
from dino.data.coco.lenient import obvious_reading


@pytest.mark.parametrize("seed", range(300))
def test_entries_checked_at_once_are_those_that_are_valid_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    odd = [
        None,
        True,
        "1",
        "x",
        1.5,
        7.0,
        -1,
        0,
        2**63,
        10**400,
        float("nan"),
        float("inf"),
        [],
        {},
        [1],
        -0.0,
        64,
        1e9,
    ]
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3.5, 4], "area": 2, "iscrowd": 0}
    for _ in range(rng.randint(1, 2)):
        key = rng.choice([*entry, "bbox", "bbox"])
        if key == "bbox" and rng.random() < 0.8:
            entry["bbox"] = [rng.choice([*odd, 1, 20, 63]) if rng.random() < 0.4 else value for value in (1, 2, 3.5, 4)]
        elif rng.random() < 0.2:
            entry.pop(key, None)
        else:
            entry[key] = copy.copy(rng.choice(odd))
    images = Images(np.array([7]), np.array([[64, 48]]), ["a.png"])
    at_once = boxes_at_once([entry], images, {3}) is not None
    if check_annotation(entry, images.size_of, (), {3}) is None:
        assert at_once
    if at_once:
        assert check_annotation(obvious_reading("annotations", entry), images.size_of, (), {3}) is None
