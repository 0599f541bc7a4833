"""Fields that the job does not need, or that have an obvious reading, are no errors; advice keeps the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino.data import DatasetError
from tests.dino.data.data_examples import document, load_coco
from tests.dino.data.test_coco import Change, drop, put

LENIENT: dict[str, Change] = {
    "annotation id text": put("annotations", id="a7f3"),
    "annotation id missing": drop("annotations", "id"),
    "annotation id null": put("annotations", id=None),
    "annotation id duplicate": put("annotations", id=4712),
    "annotation id decimal": put("annotations", id=1.5),
    "annotation id huge": put("annotations", id=2**70),
    "iscrowd null": put("annotations", iscrowd=None),
    "iscrowd missing": drop("annotations", "iscrowd"),
    "iscrowd false": put("annotations", iscrowd=False),
    "iscrowd text": put("annotations", iscrowd="0"),
    "area text": put("annotations", area="90"),
    "image_id decimal": put("annotations", image_id=12.0),
    "image_id text": put("annotations", image_id="12"),
    "category_id decimal": put("annotations", category_id=17.0),
    "category_id text": put("annotations", category_id=" 17"),
    "box text": put("annotations", bbox=["3", "9.0", " 20", "+5e0"]),
    "width decimal": put("images", width=64.0),
    "height text": put("images", height="48"),
    "width missing": drop("images", "width"),
    "height null": put("images", height=None),
    "size null": put("images", width=None, height=None),
    "image id decimal": put("images", id=12.0),
    "image id text": put("images", id="12"),
    "category id text": put("categories", id="18"),
    "category without supercategory": put("categories", supercategory=None),
    "windows separators": put("images", file_name=".\\cat.jpg"),
    "unknown fields": put("annotations", segmentation=None, attributes={"occluded": "?"}, score="high"),
}


@pytest.mark.parametrize("name", LENIENT)
def test_fields_with_an_obvious_reading_change_nothing(name: str, folder: Path) -> None:
    content = document()
    LENIENT[name](content)
    index, plain = load_coco(folder, content), load_coco(folder, document())
    assert not index.problems
    truth, same = index.ground_truth(), plain.ground_truth()
    if name == "windows separators":
        truth["images"][1]["file_name"] = "cat.jpg"
    assert truth == same


@pytest.mark.parametrize("value", [None, "missing"])
def test_an_area_that_is_missing_is_that_of_the_box(value: str | None, folder: Path) -> None:
    content = document()
    content["annotations"][0]["area"] = None
    if value == "missing":
        del content["annotations"][0]["area"]
    assert load_coco(folder, content).ground_truth()["annotations"][1]["area"] == 100


def test_a_name_that_is_a_number_and_a_name_with_accents_decomposed(folder: Path) -> None:
    content = document()
    content["categories"][0]["name"] = 7
    content["images"][0]["file_name"] = "caf\u00e9.jpg"
    (folder / "images" / "cat.jpg").rename(folder / "images" / "cafe\u0301.jpg")
    index = load_coco(folder, content)
    assert index.categories.names == ("cat", "7") and index.image_path(1).is_file()


def test_the_advice_keeps_the_data(folder: Path) -> None:
    content = document()
    for annotation in content["annotations"]:
        annotation["bbox"] = [3, 9, -2, 5]
    with pytest.raises(DatasetError, match=r"4 of 4 annotations\. Fix them\.$"):
        load_coco(folder, content)


def test_a_missing_size_of_an_unreadable_file_is_named(folder: Path) -> None:
    content = document()
    del content["images"][0]["width"]
    (folder / "images" / "cat.jpg").write_bytes(b"garbage")
    with pytest.raises(DatasetError, match=r"image 12 \(cat\.jpg\): has no width and height, and the file cannot be"):
        load_coco(folder, content)
