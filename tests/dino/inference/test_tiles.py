"""Tiles cover an image, and what their cuts made double, and nothing else, is merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.inference.boxes import iou, nms
from dino.inference.tiles import merge_tiles, tile_boxes

SIZE = (1000, 600)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [
        (SIZE, 320, 0.2),
        (SIZE, 320, 0.5),
        (SIZE, 2000, 0.2),
        (SIZE, 600, 0.1),
        ((321, 320), 320, 0.2),
        ((17, 5000), 64, 0.3),
    ],
)
def test_tiles_cover_the_image_with_the_overlap(size, tile, overlap):
    tiles = tile_boxes(size, tile, overlap)
    covered = np.zeros((size[1], size[0]), dtype=int)
    for x0, y0, x1, y1 in tiles.tolist():
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
        assert (x1 - x0, y1 - y0) == (min(tile, size[0]), min(tile, size[1]))
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    for side in (0, 1):
        starts = sorted({int(box[side]) for box in tiles})
        steps = np.diff(starts)
        assert (steps <= np.ceil(tile * (1 - overlap))).all(), starts


def seen(objects, tiles, *, least=4, jitter=0.0, seed=0):
    """What a detector that finds every visible part of an object would return: boxes, scores, labels, owners."""
    rng = np.random.default_rng(seed)
    boxes, scores, labels, owners = [], [], [], []
    for t, tile in enumerate(tiles.tolist()):
        for box, label in objects:
            part = [*np.maximum(box[:2], tile[:2]), *np.minimum(box[2:], tile[2:])]
            if part[2] - part[0] >= least and part[3] - part[1] >= least:
                boxes.append(np.array(part, dtype=float) + rng.uniform(-jitter, jitter, 4))
                scores.append(rng.uniform(0.4, 1))
                labels.append(label)
                owners.append(t)
    return (
        torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(owners, dtype=torch.int64),
    )


def assert_same_objects(objects, merged, tolerance=0.95):
    boxes, _, labels = merged
    assert len(boxes) == len(objects), f"{len(objects)} objects became {boxes.tolist()}"
    for box, label in objects:
        overlap = iou(torch.tensor(box, dtype=torch.float32), boxes)[labels == label]
        assert overlap.max() > tolerance, f"{box} is lost in {boxes.tolist()}"


# One tile of 320 and 256 pixels further: borders at 256, 320, 512, 576, ... in a row of tiles that overlap by 64.
LAYOUTS = {
    "whole in the overlap": [([260, 20, 310, 60], 0)],
    "cut by both borders": [([200, 20, 400, 80], 0)],
    "over three tiles": [([100, 20, 700, 80], 0)],
    "over the whole image": [([0, 0, 1000, 600], 0)],
    "at a corner of four tiles": [([230, 230, 360, 370], 0)],
    "large and round a corner": [([150, 150, 700, 500], 0)],
    "two that touch in the overlap": [([200, 20, 288, 80], 0), ([288, 20, 380, 80], 0)],
    "two that touch at a border": [([200, 20, 256, 80], 0), ([256, 20, 380, 80], 0)],
    "two that touch at the other border": [([200, 20, 320, 80], 0), ([320, 20, 380, 80], 0)],
    "two above each other, both cut": [([200, 20, 400, 80], 0), ([200, 80, 400, 140], 0)],
    "a row that touches": [([30 * k, 20, 30 * k + 30, 50], 0) for k in range(33)],
    "a grid that touches": [([40 * x, 40 * y, 40 * x + 40, 40 * y + 40], 0) for x in range(25) for y in range(15)],
    "two that overlap by a third in the overlap": [([200, 20, 300, 80], 0), ([270, 20, 380, 80], 0)],
    "two that overlap by half and lie in the overlap": [([258, 20, 298, 60], 0), ([278, 20, 318, 60], 0)],
    "a small one on a large one of its class": [([200, 20, 500, 200], 0), ([265, 60, 305, 100], 0)],
    "a small one, cut, on a large one of its class": [([150, 20, 560, 200], 0), ([230, 60, 290, 100], 0)],
    "two of different classes in one place": [([200, 20, 400, 80], 0), ([200, 20, 400, 80], 1)],
    "far apart": [([10, 10, 60, 60], 0), ([900, 500, 990, 590], 0)],
}


@pytest.mark.parametrize("jitter", [0, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_merge_gives_back_the_objects(name, jitter):
    tiles = tile_boxes(SIZE, 320, 0.2)
    merged = merge_tiles(*seen(LAYOUTS[name], tiles, jitter=jitter), tiles)
    assert_same_objects(LAYOUTS[name], merged, 0.95 if jitter == 0 else 0.7)
    assert (merged[1].diff() <= 0).all()


cells = st.lists(
    st.tuples(st.integers(0, 18), st.integers(0, 10), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=150)
@given(cells, st.sampled_from([0.2, 0.3, 0.5]))
def test_objects_that_do_not_overlap_are_given_back(cells, overlap):
    taken, objects = np.zeros((11 + 5, 19 + 7), dtype=bool), []
    for x, y, width, height in cells:
        if not taken[y : y + height, x : x + width].any():
            taken[y : y + height, x : x + width] = True
            box = [50 * x, 50 * y, min(50 * (x + width), SIZE[0]), min(50 * (y + height), SIZE[1])]
            objects.append((box, 0))
    tiles = tile_boxes(SIZE, 320, overlap)
    assert_same_objects(objects, merge_tiles(*seen(objects, tiles), tiles))


def test_what_one_tile_holds_twice_stays():
    tiles = tile_boxes(SIZE, 320, 0.2)
    boxes = torch.tensor([[10.0, 10, 60, 60], [11, 11, 61, 61]])
    merged = merge_tiles(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), torch.tensor([0, 0]), tiles)
    assert len(merged[0]) == 2


def test_an_object_that_one_tile_missed_does_not_take_its_neighbour():
    tiles = tile_boxes((576, 320), 320, 0.2)
    boxes = torch.tensor([[200.0, 20, 300, 80], [270, 20, 380, 80]])  # each seen by one tile alone
    merged = merge_tiles(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), torch.tensor([0, 1]), tiles)
    assert len(merged[0]) == 2


def test_a_poor_detection_of_a_cut_part_is_merged():
    tiles = tile_boxes((576, 320), 320, 0.2)
    whole, legs = [180.0, 20, 310, 200], [257.0, 120, 308, 198]
    merged = merge_tiles(
        torch.tensor([whole, legs]), torch.tensor([0.8, 0.9]), torch.tensor([0, 0]), torch.tensor([0, 1]), tiles
    )
    assert merged[0].tolist() == [whole] and merged[1].tolist() == [pytest.approx(0.9)]


def test_a_cut_part_that_lies_half_in_another_object_stays():
    tiles = tile_boxes((576, 320), 320, 0.2)
    boxes = torch.tensor([[180.0, 20, 310, 200], [257.0, 150, 308, 260]])
    merged = merge_tiles(boxes, torch.tensor([0.8, 0.9]), torch.tensor([0, 0]), torch.tensor([0, 1]), tiles)
    assert len(merged[0]) == 2


def test_boxes_that_reach_over_the_border_of_their_tile_are_cut_there():
    tiles = tile_boxes((576, 320), 320, 0.2)
    boxes = torch.tensor([[200.0, 20, 335, 80], [240.0, 20, 400, 80]])
    merged = merge_tiles(boxes, torch.tensor([0.8, 0.9]), torch.tensor([0, 0]), torch.tensor([0, 1]), tiles)
    assert merged[0].tolist() == [[200, 20, 400, 80]]


def test_nothing_merges_to_nothing():
    tiles = tile_boxes(SIZE, 320, 0.2)
    assert [len(part) for part in merge_tiles(*seen([], tiles), tiles)] == [0, 0, 0]


def test_suppression_drops_what_overlaps_a_better_one_of_its_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [0, 0, 10, 10]])
    assert nms(boxes, torch.tensor([0, 0, 0, 1]), 0.7).tolist() == [0, 2, 3]
    assert nms(boxes, torch.tensor([0, 0, 0, 1]), 1.0).tolist() == [0, 1, 2, 3]
    assert nms(boxes, torch.tensor([0, 0, 0, 1]), 0.0).tolist() == [0, 3]
    assert nms(boxes[:0], torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []
