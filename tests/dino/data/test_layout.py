"""Both layouts are found, what is missing is listed, and the splits' categories agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino.data import (
    NO_CATEGORY,
    Categories,
    DatasetError,
    EvalTransform,
    Split,
    TrainTransform,
    build_datasets,
    build_eval_dataset,
    find_splits,
)
from dino.data.statistics import boxes_per_class
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


def test_an_unknown_folder_is_refused_in_a_short_line(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints_train2017.json").touch()
    for k in range(30):
        (tmp_path / f"a{k}").mkdir()
    with pytest.raises(DatasetError, match=r"no boxes found in COCO JSON, .* holds a0/, .* more\.") as caught:
        find_splits(tmp_path)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 200


def test_an_empty_folder_and_no_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="It holds nothing"):
        find_splits(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: no such file or folder"):
        find_splits(tmp_path / "nowhere")


def test_annotations_without_their_images_are_named(tmp_path: Path) -> None:
    split = write_coco_layout(tmp_path, "pictures", "instances_train2017.json")
    assert find_splits(tmp_path).train == split  # found wherever they are
    for file in split.images.iterdir():
        file.unlink()
    message = r"^annotations/instances_train2017\.json: image 12 .*missing.* 3 of 3 images\. Fix them\."
    with pytest.raises(DatasetError, match=message):
        build_datasets(tmp_path, validate=False)
    with pytest.raises(DatasetError, match=r"no valid split, only train \(annotations/instances_train2017\.json\)"):
        find_splits(tmp_path).require("valid")


def test_two_places_for_one_split_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "valid")
    write_split(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"more than one valid split, val/_annotations\.coco\.json and valid/"):
        find_splits(tmp_path)


def test_datasets_share_the_categories_of_the_training_file(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path, train_transform=SMALL, eval_transform=EvalTransform(24, 64), seed=7)
    assert datasets.categories == Categories((17, 18), ("cat", "dog"))
    assert datasets.valid is not None
    assert all(d.categories is datasets.categories for d in (datasets.train, datasets.valid))
    assert (datasets.train.train, datasets.valid.train) == (True, False)
    assert datasets.train.transform is SMALL and datasets.train.seed == 7
    assert datasets.valid[0][1]["labels"].tolist() == [1]


def test_official_transforms_are_the_defaults(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path)
    assert datasets.valid is not None
    assert datasets.train.transform == TrainTransform() and datasets.valid.transform == EvalTransform()


def test_official_classes_are_cocos_own(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_split(tmp_path / name)
    datasets = build_datasets(tmp_path, official_classes=True, eval_transform=EvalTransform(24, 64))
    assert datasets.categories == Categories.official_coco() and datasets.valid is not None
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


BUS = {"id": 5, "name": "bus"}


@pytest.mark.parametrize(
    ("categories", "category_ids", "kept"),
    [
        ([{"id": 17, "name": "cat"}], [17], (17,)),  # a subset
        ([{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, BUS], [17, 18], (17, 18)),  # one more, unused
        ([BUS], [], (17, 18)),
        ([{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}], [18], (17, 18)),
    ],
)
def test_valid_may_have_other_categories_that_no_box_uses(
    categories: list, category_ids: list, kept: tuple, tmp_path: Path
) -> None:
    write_split(tmp_path / "train")
    content = document() | {"categories": categories}
    box = content["annotations"][0]
    content["annotations"] = [{**box, "category_id": i} for i in category_ids]
    write_split(tmp_path / "valid", content)
    valid = build_datasets(tmp_path).valid
    assert valid is not None and valid.index.categories.ids == kept
    columns = valid.index.columns
    assert columns.class_ids[columns.classes].tolist() == category_ids


@pytest.mark.parametrize(
    ("category", "used", "message"),
    [
        ({"id": 18, "name": "hound"}, False, "category 18 is 'dog' in train/.* but 'hound' in valid/"),
        ({"id": 9, "name": "dog"}, False, "category 'dog' is 18 in train/.* but 9 in valid/"),
        (BUS, True, r"valid/_annotations\.coco\.json has boxes of 5 \('bus'\), which train/.* has not"),
    ],
)
def test_categories_that_contradict_are_refused(category: dict, used: bool, message: str, tmp_path: Path) -> None:
    write_split(tmp_path / "train")
    content = document()
    content["categories"] = [{"id": 17, "name": "cat"}, category]
    content["annotations"] = [{**content["annotations"][0], "category_id": category["id"] if used else 17}]
    write_split(tmp_path / "valid", content)
    with pytest.raises(DatasetError, match=f"the categories do not agree: {message}"):
        build_datasets(tmp_path)


def test_a_class_that_is_called_like_an_unused_label_is_compared_like_any_other(tmp_path: Path) -> None:
    for split, category_id in (("train", 18), ("valid", 9)):
        content = document()
        content["categories"] = [{"id": 17, "name": "cat"}, {"id": category_id, "name": NO_CATEGORY}]
        content["annotations"] = [{**content["annotations"][0], "category_id": 17}]
        write_split(tmp_path / split, content)
    with pytest.raises(DatasetError, match=r"category 'N/A' is 18 in train/.* but 9 in valid/"):
        build_datasets(tmp_path)


def test_classes_of_one_name_are_counted_apart(tmp_path: Path) -> None:
    content = document()
    content["categories"] = [{"id": 17, "name": "cat"}, {"id": 18, "name": "cat"}]
    content["annotations"] = [{**content["annotations"][0], "id": i, "category_id": 17 + (i > 2)} for i in range(5)]
    write_split(tmp_path / "train", content)
    lines = boxes_per_class({"train": find_splits(tmp_path).require("train").load()})
    assert [line.split() for line in lines[-2:]] == [["cat", "(id", "17)", "3"], ["cat", "(id", "18)", "2"]]


@pytest.mark.parametrize("broken", ["", "{", '{"images": []}', None])
@pytest.mark.parametrize("split", ["test", "valid"])
def test_splits_that_are_not_needed_are_not_read(split: str, broken: str | None, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        file = write_split(tmp_path / name)
        if name == split:
            file.unlink() if broken is None else file.write_text(broken)
    datasets = build_datasets(tmp_path, validate=split == "test")
    assert (datasets.valid is None) == (split == "valid")


def test_no_valid_split_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    write_split(tmp_path / "train")
    with pytest.raises(DatasetError, match=r"no valid split.*--val-fraction 0\.1 .*--evaluate-every 0"):
        build_datasets(tmp_path)
    assert build_datasets(tmp_path, validate=False).valid is None


def test_messages_name_the_file_below_the_folder(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [3, 9, -2, 5]
    write_split(tmp_path / "train")
    write_split(tmp_path / "valid", content)
    with pytest.raises(
        DatasetError, match=r"^valid/_annotations\.coco\.json: annotation 4711 \(image 12, cat\.jpg\): "
    ):
        build_datasets(tmp_path)


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
    assert datasets.valid is not None
    assert len(datasets.train.index.problems) == len(datasets.valid.index.problems) == 1


def test_a_trained_model_is_evaluated_with_its_own_labels(tmp_path: Path) -> None:
    write_split(tmp_path)
    split = Split(tmp_path, tmp_path / "_annotations.coco.json")
    # More categories than the split has, and in another order.
    model = Categories((5, 18, 17), ("bus", "dog", "cat"))
    dataset = build_eval_dataset(split, model, transform=EvalTransform(24, 64))
    assert dataset[0][1]["labels"].tolist() == [1]
    assert not dataset.train
    with pytest.raises(DatasetError, match=r"category 17 is 'lynx' in the model but 'cat' in _annot"):
        build_eval_dataset(split, Categories((17, 18), ("lynx", "dog")))
