"""Absolute paths in a COCO file: of this machine, or of the one where the file was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino.data import CocoIndex, DatasetError, find_splits
from dino.data.convert import write_coco
from dino.data.held_out import hold_out
from tests.dino.data.data_examples import document, numbered_split, write_images, write_split


def renamed(file: Path, names: dict[int, str]) -> Path:
    """Change file names of a COCO file by image id."""
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = names.get(image["id"], image["file_name"])
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    "prefix",
    ["{here}/", "/home/other/data/", "/home/other/train/", "C:\\Users\\other\\", "D:/data/", "\\\\server\\a\\"],
)
def test_pictures_of_any_absolute_path_are_found(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "train"
    file = write_split(folder)
    renamed(file, {12: prefix.format(here=folder) + "cat.jpg"})
    split = find_splits(tmp_path).require("train")
    index = split.load()
    assert split.images == folder and index.file_names == ("dog.jpg", "cat.jpg", "nothing.png")
    assert len(index.training_boxes(1)[0]) == 2


def test_the_last_parts_tell_pictures_of_one_name_apart(tmp_path: Path) -> None:
    content = document()
    for k, image in enumerate(content["images"][:2]):
        image["file_name"] = f"cam{k}/x.png"
        write_images(tmp_path / f"cam{k}", [image | {"file_name": "x.png"}])
        image["file_name"] = f"/mnt/disk/cam{k}/x.png"
    write_images(tmp_path, content["images"][2:])
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert CocoIndex.load(tmp_path / "boxes.json", tmp_path).file_names == ("cam1/x.png", "cam0/x.png", "nothing.png")


@pytest.mark.parametrize(
    "names",
    [
        {12: "/a/1/dog.jpg", 700: "/a/2/dog.jpg", 3: "/a/3/cat.jpg"},  # two would be dog.jpg
        {12: "/a/dog.jpg"},  # it is that of image 3
        {12: "/data/valid/cat.jpg"},  # of another split
        {12: "/data/other.jpg"},
        {12: "a/cat.jpg"},  # relative: it is clear where it must be
    ],
)
def test_a_picture_that_another_could_be_is_missing(tmp_path: Path, names: dict[int, str]) -> None:
    file = renamed(write_split(tmp_path / "train"), names)
    with pytest.raises(DatasetError, match=r"image 12 .* is missing from .*train"):
        find_splits(tmp_path).require("train").load()
    assert 12 not in CocoIndex.load(file, file.parent, skip_invalid=True).image_ids


def test_pictures_outside_the_folder_and_their_copy(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", document()["images"])
    file = write_split(tmp_path / "data" / "train")
    renamed(file, {12: f"{tmp_path}/elsewhere/cat.jpg"})
    (file.parent / "cat.jpg").unlink()
    index = find_splits(tmp_path / "data").require("train").load()
    assert index.image_path(1) == tmp_path / "elsewhere" / "cat.jpg"
    write_coco(index, tmp_path / "copy")
    copied = CocoIndex.load(tmp_path / "copy" / "_annotations.coco.json", tmp_path / "copy")
    assert copied.file_names == ("data/train/dog.jpg", "elsewhere/cat.jpg", "data/train/nothing.png")
    assert copied.columns.boxes_xywh.tolist() == index.columns.boxes_xywh.tolist()


@pytest.mark.parametrize("layout", ["one folder", "images beside annotations"])
def test_held_out_images_do_not_depend_on_the_machine(tmp_path: Path, layout: str) -> None:
    file = numbered_split(tmp_path / "images", 10)
    if layout != "one folder":
        (tmp_path / "annotations").mkdir()
        file = file.rename(tmp_path / "annotations" / "train.json")
    held = []
    for machine in (str(tmp_path), "/home/other/data"):
        renamed(file, {1000 + k: f"{machine}/images/{k}.png" for k in range(10)})
        root = tmp_path / "images" if layout == "one folder" else tmp_path
        held.append(hold_out(find_splits(root).require("train").load(), 0.3, 42)[1].image_ids.tolist())
    assert held[0] == held[1]
