"""Thresholds are stored beside the weights that they belong to, and never outlive them."""

from __future__ import annotations

import json
import shutil

import pytest

from dino.checkpoint import CheckpointError, save_model
from dino.checkpoint.thresholds import Thresholds, load_thresholds, save_thresholds, thresholds_path
from tests.dino.tools_toys import CATEGORIES, tiny_model

STORED = Thresholds({3: 0.25, 2**40: 0.123456789}, 0.4, {"data": "DATA", "split": "valid"})


@pytest.fixture
def model_file(tmp_path):
    return save_model(tiny_model(), tmp_path / "best", CATEGORIES)


def test_thresholds_come_back_and_the_weights_are_not_touched(model_file):
    assert load_thresholds(model_file) is None
    before = model_file.read_bytes(), model_file.stat().st_mtime_ns
    path = save_thresholds(model_file, STORED)
    assert path == model_file.with_name("thresholds.json")
    assert (model_file.read_bytes(), model_file.stat().st_mtime_ns) == before
    found = load_thresholds(model_file)
    assert found is not None and found == STORED
    assert (found.of(3), found.of(2**40), found.of(7)) == (0.25, 0.123456789, 0.4)
    assert [file.name for file in model_file.parent.iterdir() if file.name.startswith(".")] == []


def test_a_new_model_has_none(model_file):
    save_thresholds(model_file, STORED)
    save_model(tiny_model(seed=1), model_file.parent, CATEGORIES)
    assert load_thresholds(model_file) is None


def test_those_of_other_weights_are_refused(model_file, tmp_path):
    save_thresholds(model_file, STORED)
    other = save_model(tiny_model(seed=1), tmp_path / "other", CATEGORIES)
    shutil.copy(other, model_file)
    with pytest.raises(CheckpointError, match=r"belongs to other weights than .* Run evaluate again"):
        load_thresholds(model_file)


def test_files_in_one_folder_have_their_own(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(name.encode())
    save_thresholds(tmp_path / "a.pth", STORED)
    assert thresholds_path(tmp_path / "a.pth").name == "a.thresholds.json"
    assert load_thresholds(tmp_path / "a.pth") == STORED and load_thresholds(tmp_path / "b.pth") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("overall"),
        lambda content: content.update(overall="high"),
        lambda content: content.update(overall=float("nan")),
        lambda content: content.update(by_category={"cat": 0.5}),
        lambda content: content.update(by_category={"3": 1.5}),
        lambda content: content.update(by_category=[0.5]),
        lambda content: content.update(model=None),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(model_file, change):
    path = save_thresholds(model_file, STORED)
    content = json.loads(path.read_text())
    change(content)
    for text in (json.dumps(content), path.read_text()[:40], ""):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"thresholds\.json: .* run evaluate again"):
            load_thresholds(model_file)
