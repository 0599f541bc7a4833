"""Both layouts are found, what is missing is listed, and the splits' categories agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino.data import (
    Categories,
    DatasetError,
    EvalTransform,
    Split,
    TrainTransform,
    build_datasets,
    build_eval_dataset,
    find_splits,
)
from tests.dino.data.data_examples import document, write_images, write_split

SMALL = TrainTransform(short_sides=(24,), long_side=64, crop_short_sides=(28,), crop_size=(16, 28))


def write_coco_layout(root: Path, images: str, annotations: str) -> Split:
    write_images(root / images, document()["images"])
    file = root / "annotations" / annotations
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document()))
    return Split(root / images, file)


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_roboflow_layout_is_found(valid: str, tmp_path: Path) -> None:
    for name in ("train", valid, "test"):
        write_split(tmp_path / name)
    layout = find_splits(tmp_path)
    for split, name in ((layout.train, "train"), (layout.valid, valid), (layout.test, "test")):
        assert split == Split(tmp_path / name, tmp_path / name / "_annotations.coco.json")


@pytest.mark.parametrize("year", ["2017", ""])
def test_coco_layout_is_found(year: str, tmp_path: Path) -> None:
    train = write_coco_layout(tmp_path, f"train{year}", f"instances_train{year}.json")
    valid = write_coco_layout(tmp_path, f"val{year}", f"instances_val{year}.json")
    layout = find_splits(str(tmp_path))
    assert (layout.train, layout.valid, layout.test) == (train, valid, None)
    assert layout.require("train") == train


def test_nothing_found_lists_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints_train2017.json").touch()
    (tmp_path / "train2017").mkdir()
    with pytest.raises(DatasetError) as caught:
        find_splits(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no train or valid split. Looked for train/_annotations.coco.json with")
    assert "annotations/instances_val2017.json with images in val2017/" in message
    assert message.endswith("The folder holds annotations/, train2017/, annotations/person_keypoints_train2017.json.")


def test_an_empty_folder_and_no_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="The folder holds nothing"):
        find_splits(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: is not a folder"):
        find_splits(tmp_path / "nowhere")


def test_annotations_without_their_images_are_no_split(tmp_path: Path) -> None:
    write_coco_layout(tmp_path, "pictures", "instances_train2017.json")
    write_coco_layout(tmp_path, "val2017", "instances_val2017.json")
    layout = find_splits(tmp_path)
    assert layout.train is None
    with pytest.raises(DatasetError, match=r"no train split\. .*annotations/instances_train2017\.json"):
        layout.require("train")


def test_two_places_for_one_split_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "valid")
    write_split(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"more than one valid split, valid/_annotations\.coco\.json and val/"):
        find_splits(tmp_path)


def test_datasets_share_the_categories_of_the_training_file(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path, train_transform=SMALL, eval_transform=EvalTransform(24, 64), seed=7)
    assert datasets.categories == Categories((17, 18), ("cat", "dog"))
    assert datasets.test is not None
    assert all(d.categories is datasets.categories for d in (datasets.train, datasets.valid, datasets.test))
    assert (datasets.train.train, datasets.valid.train, datasets.test.train) == (True, False, False)
    assert datasets.train.transform is SMALL and datasets.train.seed == 7
    assert datasets.valid[0][1]["labels"].tolist() == [1]


def test_official_transforms_are_the_defaults(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path)
    assert datasets.train.transform == TrainTransform() and datasets.valid.transform == EvalTransform()
    assert datasets.test is None


def test_official_classes_are_cocos_own(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path, official_classes=True, eval_transform=EvalTransform(24, 64))
    assert datasets.categories == Categories.official_coco()
    assert datasets.valid[0][1]["labels"].tolist() == [18]


@pytest.mark.parametrize(("category_id", "name", "expected"), [(18, "wolf", "dog"), (92, "dog", "no category")])
def test_official_classes_refuse_other_categories(category_id: int, name: str, expected: str, tmp_path: Path) -> None:
    content = document()
    content["annotations"] = content["annotations"][:1]
    content["categories"][0] = {"id": category_id, "name": name}
    for split in ("train", "valid"):
        write_split(tmp_path / split, content)
    with pytest.raises(DatasetError, match=f"{category_id} is '{name}', which is '{expected}' in COCO"):
        build_datasets(tmp_path, official_classes=True)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_splits_with_other_categories_are_refused(split: str, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        content = document()
        if name == split:
            content["categories"] += [{"id": 5, "name": "bus"}]
            content["categories"][0]["name"] = "hound"
        write_split(tmp_path / name, content)
    with pytest.raises(DatasetError) as caught:
        build_datasets(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the splits have different categories: category 18 is 'dog' in train/_annotations.coco.json but"
        f" 'hound' in {split}/_annotations.coco.json; only {split}/_annotations.coco.json has 5 ('bus')."
    )


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = [dict(content["annotations"][0], iscrowd=1)]
    write_split(tmp_path / "train", content)
    write_split(tmp_path / "valid")
    with pytest.raises(DatasetError, match="has no box to train on"):
        build_datasets(tmp_path)


def test_skip_invalid_reaches_every_split(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [3, 9, -2, 5]
    write_split(tmp_path / "train", content)
    write_split(tmp_path / "valid", content)
    with pytest.raises(DatasetError, match="has negative width"):
        build_datasets(tmp_path)
    datasets = build_datasets(tmp_path, skip_invalid=True)
    assert len(datasets.train.index.problems) == len(datasets.valid.index.problems) == 1


def test_a_trained_model_is_evaluated_with_its_own_labels(tmp_path: Path) -> None:
    write_split(tmp_path)
    split = Split(tmp_path, tmp_path / "_annotations.coco.json")
    # More categories than the split has, and in another order.
    model = Categories((5, 18, 17), ("bus", "dog", "cat"))
    dataset = build_eval_dataset(split, model, transform=EvalTransform(24, 64))
    assert dataset[0][1]["labels"].tolist() == [1]
    assert not dataset.train
    with pytest.raises(DatasetError, match=r"the model has no categories 17 \('cat'\)"):
        build_eval_dataset(split, Categories((17, 18), ("lynx", "dog")))
