"""Detections as a sequence, and as the data of other tools."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from dino.inference.detections import Detection, Detections

FOUND = Detections(
    boxes_xyxy=torch.tensor([[10.0, 20, 50, 60], [-5, -5, 20, 20], [90, 10, 130, 90]]),
    scores=torch.tensor([0.9, 0.5, 0.25]),
    labels=torch.tensor([1, 0, 1]),
    category_ids=[7, 3, 7],
    names=["dog", "cat", "dog"],
    size_hw=(80, 100),
    path="a.jpg",
)


def names(found):
    return [(name, category) for name, category in zip(found.names, found.category_ids, strict=True)]


def test_one_is_a_detection_and_a_loop_yields_each():
    assert FOUND[0] == Detection((10, 20, 50, 60), FOUND.scores[0].item(), 1, 7, "dog") == FOUND[np.int64(0)]
    assert FOUND[-1].name == "dog" and FOUND[-1].score == 0.25
    assert [each.name for each in FOUND] == ["dog", "cat", "dog"] and list(FOUND[:0]) == []
    for place in (3, -4):
        with pytest.raises(IndexError):
            FOUND[place]


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (slice(None), [0, 1, 2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ([], []),
        ([True, False, True], [0, 2]),
        (np.array([False, False, False]), []),
        (np.array([1]), [1]),
        (torch.tensor([-1]), [2]),
        (FOUND.scores > 0.4, [0, 1]),
        (np.array(FOUND.names) == "dog", [0, 2]),
    ],
)
def test_slices_masks_and_lists_give_detections(key, kept):
    part = FOUND[key]
    assert isinstance(part, Detections) and len(part) == len(kept)
    assert names(part) == [names(FOUND)[k] for k in kept]
    assert torch.equal(part.boxes_xyxy, FOUND.boxes_xyxy[kept]) and torch.equal(part.labels, FOUND.labels[kept])
    assert (part.path, part.size_hw) == ("a.jpg", (80, 100))


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ([True, False], IndexError),
        (torch.zeros(0, dtype=torch.bool), IndexError),
        ([0.5], TypeError),
        ("dog", TypeError),
    ],
)
def test_what_is_no_index_is_an_error(key, error):
    with pytest.raises(error):
        FOUND[key]


def test_yolo_lines_are_clipped_and_in_0_to_1():
    assert FOUND.to_yolo() == [
        "1 0.300000 0.500000 0.400000 0.500000",
        "0 0.100000 0.125000 0.200000 0.250000",
        "1 0.950000 0.562500 0.100000 0.875000",
    ]
    assert FOUND[:1].to_yolo(scores=True) == ["1 0.300000 0.500000 0.400000 0.500000 0.9000"]
    assert FOUND[:0].to_yolo() == []


def test_other_tools_get_all_columns(monkeypatch):
    given = {}

    class Frame:
        def __init__(self, values, columns):
            given["boxes"] = (values.tolist(), columns)

        def assign(self, **columns):
            given.update(columns)
            return self

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    FOUND.to_pandas()
    assert given["boxes"] == (FOUND.boxes_xyxy.tolist(), ["x0", "y0", "x1", "y1"])
    assert (given["name"], given["category_id"]) == (FOUND.names, FOUND.category_ids)
    other = FOUND.to_supervision()
    assert other["xyxy"].shape == (3, 4) and other["class_id"].tolist() == [1, 0, 1]
    assert other["data"]["class_name"].tolist() == FOUND.names and other["confidence"].dtype == np.float32


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_tool_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(FOUND, f"to_{package}")()
