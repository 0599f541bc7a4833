"""Metadata: what is written is read, and what is no export says so."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from dino.data import EvalTransform
from dino.export.description import Description, ExportError, FixedSize, fixed_transform
from tests.dino.export.export_toys import CATEGORIES, small_model


@pytest.mark.parametrize("size", [None, (96, 64)])
def test_metadata_are_read_as_they_were_written(size):
    transform = fixed_transform(EvalTransform(80, None), size)
    written = Description(small_model().config, CATEGORIES, transform, "grid", True, 7, 33)
    assert Description.from_strings(written.to_strings(), "file") == written
    assert Description.from_json(written.to_json(), "file") == written
    assert written.size == size
    preprocessing = json.loads(written.to_strings()["dino.preprocessing"])
    assert preprocessing["mean"] == [0.485, 0.456, 0.406] and preprocessing["short_side"] == (
        80 if size is None else 64
    )
    assert json.loads(written.to_strings()["dino.names"]) == {"0": "cat", "1": "dog", "2": "a horse"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda strings: strings.clear(), "not exported by dino"),
        (lambda strings: strings.update({"dino.format": "2"}), "has format 2, this version reads up to 1"),
        (lambda strings: strings.pop("dino.model"), "metadata are damaged"),
        (lambda strings: strings.update({"dino.categories": "["}), "metadata are damaged"),
    ],
)
def test_other_files_are_refused(change, message):
    strings = Description(small_model().config, CATEGORIES, EvalTransform(), "gather").to_strings()
    change(strings)
    with pytest.raises(ExportError, match=message):
        Description.from_strings(strings, "model.onnx")


@pytest.mark.parametrize(("image", "expected"), [((200, 100), (48, 96)), ((100, 200), (64, 32)), ((10, 10), (64, 64))])
def test_an_image_just_fits_into_a_fixed_size(image, expected):
    boxes = torch.tensor([[0.0, 0.0, image[0] / 2, image[1]]])
    pixels, boxes, _ = FixedSize(64, 96, 64, 96)(Image.new("RGB", image), boxes, torch.tensor([0]))
    assert tuple(pixels.shape[1:]) == expected
    torch.testing.assert_close(boxes, torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
