"""A part of the training images to validate on: the same everywhere, kept from training, and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino.commands.evaluate import held_out_options
from dino.data import CocoIndex, DatasetError, build_datasets, find_eval_split
from dino.data.held_out import hold_out
from dino.training.checkpoint import TrainingError
from dino.training.train import train
from tests.dino.data.data_examples import document, numbered_split, write_split
from tests.dino.training.train_toys import quick_runs, toy_config, write_rectangles


def names_of(index: CocoIndex) -> list[str]:
    return [Path(name).name for name in index.file_names]


def test_the_split_is_the_same_for_every_order_and_machine(tmp_path: Path) -> None:
    file = numbered_split(tmp_path / "a", 10)
    content = json.loads(file.read_text())
    index = CocoIndex.load(file, file.parent)
    kept, held = hold_out(index, 0.3, 42)
    # Stored: another machine must choose the same.
    assert names_of(held) == ["1.png", "7.png", "9.png"]
    assert sorted(names_of(kept) + names_of(held)) == sorted(index.file_names)
    boxes = kept.ground_truth()["annotations"] + held.ground_truth()["annotations"]
    assert len(boxes) == len(content["annotations"])
    for image in content["images"]:
        image["id"] = 5000 - image["id"]
    for annotation in content["annotations"]:
        annotation["image_id"] = 5000 - annotation["image_id"]
    file.write_text(json.dumps(content))
    other = hold_out(CocoIndex.load(file, file.parent), 0.3, 42)[1]
    assert sorted(names_of(other)) == names_of(held)
    assert other.training_boxes(0)[0].tolist() == held.training_boxes(2)[0].tolist()
    assert names_of(hold_out(index, 0.3, 43)[1]) != names_of(held)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.1, 1), (0.5, 5), (0.999, 9)])
def test_both_parts_have_an_image(fraction: float, count: int, tmp_path: Path) -> None:
    file = numbered_split(tmp_path, 10)
    assert [len(part) for part in hold_out(CocoIndex.load(file, tmp_path), fraction, 0)] == [10 - count, count]


def test_two_entries_of_one_picture_stay_together(tmp_path: Path) -> None:
    content = document()
    content["images"].append({**content["images"][0], "id": 13})
    file = write_split(tmp_path, content)
    for seed in range(20):
        kept, held = hold_out(CocoIndex.load(file, tmp_path), 0.5, seed)
        assert not set(kept.file_names) & set(held.file_names)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    file = numbered_split(tmp_path, 1)
    with pytest.raises(DatasetError, match="has 1 image, --val-fraction needs at least 2"):
        hold_out(CocoIndex.load(file, tmp_path), 0.5, 0)


def test_a_fraction_replaces_the_validation_split(tmp_path: Path) -> None:
    write_rectangles(tmp_path)
    (tmp_path / "valid" / "_annotations.coco.json").write_text("broken")
    data = build_datasets(tmp_path, val_fraction=0.25, seed=42)
    assert data.valid is not None and (len(data.train), len(data.valid)) == (6, 2)
    assert not data.valid.train and not set(data.train.index.file_names) & set(data.valid.index.file_names)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_named(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val_fraction must be at least 0 and below 1"):
        toy_config(tmp_path, tmp_path, val_fraction=value)


def test_a_run_keeps_its_split_for_evaluation_and_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_runs(monkeypatch)
    data, run = write_rectangles(tmp_path / "data"), tmp_path / "run"
    config = toy_config(data, run, epochs=1, evaluate_every=1, val_fraction=0.25)
    assert train(config, quiet=True).step == 3
    expected = build_datasets(data, val_fraction=0.25, seed=config.seed)
    assert expected.valid is not None
    for checkpoint in (run, run / "best", run / "final" / "model.safetensors", run / "last"):
        options = held_out_options(checkpoint)
        held = find_eval_split(data, "valid", **options).load()
        assert held.file_names == expected.valid.index.file_names
        kept = find_eval_split(data, "train", **options).load()
        assert kept.file_names == expected.train.index.file_names
    # Other data have a validation split of their own.
    other = write_rectangles(tmp_path / "other")
    assert len(find_eval_split(other, "valid", **held_out_options(run)).load()) == 3
    for changes in ({"val_fraction": 0.5}, {"val_fraction": 0.0}, {"seed": 7}):
        with pytest.raises(TrainingError, match=r"made with --val-fraction 0\.25 and --seed 42"):
            train(toy_config(data, run, **{"epochs": 2, "val_fraction": 0.25, **changes}, resume=True), quiet=True)
    resumed = toy_config(data, run, epochs=2, evaluate_every=1, val_fraction=0.25, resume=True)
    assert train(resumed, quiet=True).step == 6


def test_a_single_file_is_evaluated_as_it_is(tmp_path: Path) -> None:
    write_rectangles(tmp_path)
    file = tmp_path / "valid" / "_annotations.coco.json"
    assert len(find_eval_split(file, "valid").load()) == 3
    with pytest.raises(DatasetError, match=r"no test split, only train .* Choose another with --split"):
        find_eval_split(tmp_path, "test")
