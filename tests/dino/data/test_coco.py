"""Every malformed COCO file gets one line that says where and what; valid ones become an exact index."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dino.data import CocoIndex, DatasetError
from tests.dino.data.data_examples import DOCUMENT, document, load_coco

Change = Callable[[dict[str, Any]], object]
ANNOTATION = "annotation 4711 (image 12, cat.jpg): "
IMAGE = "image 12 (cat.jpg): "


def put(collection: str, **fields: Any) -> Change:
    """Overwrite fields of the first entry of a collection."""
    return lambda content: content[collection][0].update(fields)


def drop(collection: str, key: str) -> Change:
    return lambda content: content[collection][0].pop(key)


# name: (change of the document, collection, the line without its end)
ENTRIES: dict[str, tuple[Change, str, str]] = {
    "box_negative_width": (
        put("annotations", bbox=[3, 9, -2, 5]),
        "annotations",
        ANNOTATION + "bbox [3, 9, -2, 5] has negative width",
    ),
    "box_negative_height": (
        put("annotations", bbox=[3, 9, 2, -0.5]),
        "annotations",
        ANNOTATION + "bbox [3, 9, 2, -0.5] has negative height",
    ),
    "box_nan": (
        put("annotations", bbox=[3, math.nan, 2, 5]),
        "annotations",
        ANNOTATION + "bbox [3, nan, 2, 5] holds NaN",
    ),
    "box_infinite": (
        put("annotations", bbox=[3, 9, math.inf, 5]),
        "annotations",
        ANNOTATION + "bbox [3, 9, inf, 5] holds inf, which is infinite or absurdly large",
    ),
    "box_absurd": (
        put("annotations", bbox=[3, 9, 10**400, 5]),
        "annotations",
        ANNOTATION + "bbox [3, 9, 1000",
    ),
    "box_three_numbers": (
        put("annotations", bbox=[3, 9, 2]),
        "annotations",
        ANNOTATION + "bbox must be 4 numbers [x, y, width, height], got [3, 9, 2]",
    ),
    "box_object": (
        put("annotations", bbox={"x": 3}),
        "annotations",
        ANNOTATION + "bbox must be 4 numbers [x, y, width, height], got {'x': 3}",
    ),
    "box_null": (
        put("annotations", bbox=None),
        "annotations",
        ANNOTATION + "bbox must be 4 numbers [x, y, width, height], got None",
    ),
    "box_text": (
        put("annotations", bbox=[3, "nine", 2, 5]),
        "annotations",
        ANNOTATION + "bbox [3, 'nine', 2, 5] holds 'nine', which is text, not a number",
    ),
    "box_bool": (
        put("annotations", bbox=[3, True, 2, 5]),
        "annotations",
        ANNOTATION + "bbox [3, True, 2, 5] holds True, which is true or false, not a number",
    ),
    "box_missing": (drop("annotations", "bbox"), "annotations", ANNOTATION + "has no 'bbox'"),
    "box_outside": (
        put("annotations", bbox=[64, 9, 2, 5]),
        "annotations",
        ANNOTATION + "bbox [64, 9, 2, 5] lies outside its image of 64x48 pixels",
    ),
    "unknown_image": (
        put("annotations", image_id=13),
        "annotations",
        "annotation 4711: image_id 13 is not among the images",
    ),
    "unknown_category": (
        put("annotations", category_id=19),
        "annotations",
        ANNOTATION + "category_id 19 is not among the categories",
    ),
    "image_id_text": (
        put("annotations", image_id="cat"),
        "annotations",
        "annotation 4711: image_id 'cat' is not an integer but text",
    ),
    "image_id_missing": (drop("annotations", "image_id"), "annotations", "annotation 4711: has no 'image_id'"),
    "category_id_float": (
        put("annotations", category_id=17.5),
        "annotations",
        ANNOTATION + "category_id 17.5 is not an integer but a decimal number",
    ),
    "category_id_null": (
        put("annotations", category_id=None),
        "annotations",
        ANNOTATION + "category_id None is not an integer but null",
    ),
    "annotation_null": (
        lambda content: content["annotations"].insert(0, None),
        "annotations",
        "annotations[0]: must be an object, got None",
    ),
    "crowd_two": (
        put("annotations", iscrowd=2),
        "annotations",
        ANNOTATION + "iscrowd must be 0 or 1, got 2",
    ),
    "area_negative": (
        put("annotations", area=-1),
        "annotations",
        ANNOTATION + "area must be a finite number of pixels, at least 0, got -1",
    ),
    "area_nan": (
        put("annotations", area=math.nan),
        "annotations",
        ANNOTATION + "area must be a finite number of pixels, at least 0, got nan",
    ),
    "image_id_duplicate": (
        lambda content: content["images"].append(dict(content["images"][0], file_name="dog.jpg")),
        "images",
        "image 12 (dog.jpg): id 12 is used more than once",
    ),
    "image_id_float": (
        put("images", id=12.5),
        "images",
        "images[0]: id 12.5 is not an integer but a decimal number",
    ),
    "image_text": (
        lambda content: content["images"].append("cat.jpg"),
        "images",
        "images[3]: must be an object, got 'cat.jpg'",
    ),
    "image_width_negative": (
        put("images", width=-64),
        "images",
        IMAGE + "width must be at least 1 pixel, got -64",
    ),
    "image_height_zero": (
        put("images", height=0),
        "images",
        IMAGE + "height must be at least 1 pixel, got 0",
    ),
    "image_height_text": (
        put("images", height="tall"),
        "images",
        IMAGE + "height must be a whole number of pixels, got 'tall'",
    ),
    "file_name_missing": (
        drop("images", "file_name"),
        "images",
        "image 12: file_name must be non-empty text, got None",
    ),
    "file_name_absolute": (
        put("images", file_name="/no/where.jpg"),
        "images",
        "image 12 (/no/where.jpg): the file '/no/where.jpg' is missing from ",
    ),
    "file_name_drive": (
        put("images", file_name="C:\\no\\where.jpg"),
        "images",
        "image 12 (C:\\no\\where.jpg): the file 'C:\\\\no\\\\where.jpg' is missing from ",
    ),
    "file_name_parent": (
        put("images", file_name="../../cat.jpg"),
        "images",
        "image 12 (../../cat.jpg): file_name '../../cat.jpg' leaves the images folder",
    ),
    "file_name_hidden_parent": (
        put("images", file_name="a/../../cat.jpg"),
        "images",
        "image 12 (a/../../cat.jpg): file_name 'a/../../cat.jpg' leaves the images folder",
    ),
    "file_missing": (
        put("images", file_name="Cat.jpg"),
        "images",
        "image 12 (Cat.jpg): the file 'Cat.jpg' is missing from ",
    ),
    "folder_missing": (
        put("images", file_name="sub/cat.jpg"),
        "images",
        "image 12 (sub/cat.jpg): the file 'sub/cat.jpg' is missing from ",
    ),
    "category_duplicate": (
        put("categories", id=17),
        "categories",
        "category 17: id 17 is used more than once",
    ),
    "category_id_text": (
        put("categories", id="dog"),
        "categories",
        "categories[0]: id 'dog' is not an integer but text",
    ),
    "category_name_missing": (
        drop("categories", "name"),
        "categories",
        "category 18: name must be non-empty text, got None",
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_invalid_entry_is_answered_by_one_line(name: str, folder: Path) -> None:
    change, collection, line = ENTRIES[name]
    content = document()
    change(content)
    with pytest.raises(DatasetError) as caught:
        load_coco(folder, content)
    first = str(caught.value).splitlines()[0]
    assert first.startswith("train.json: " + line)
    end = f". 1 of {len(content[collection])} {collection}. Fix it or pass --skip-invalid."
    assert first.endswith(end)
    # Other lines are only about annotations that lost their image or category.
    for other in str(caught.value).splitlines()[1:]:
        assert re.search(r"its image 12 is invalid|_id \d+ is not among the", other)


@pytest.mark.parametrize("name", ENTRIES)
def test_skip_invalid_leaves_out_the_entry_and_reports_it(name: str, folder: Path) -> None:
    change, collection, line = ENTRIES[name]
    content = document()
    change(content)
    index = load_coco(folder, content, skip_invalid=True)
    assert next(iter(index.problems)).collection == collection
    first = index.describe_problems()[0]
    assert first.startswith("train.json: " + line) and first.endswith(
        f". Skipped 1 of {len(content[collection])} {collection}."
    )
    kept = {"images": len(index), "annotations": len(index.columns.areas), "categories": index.categories.num_classes}
    skipped = {key: sum(problem.collection == key for problem in index.problems) for key in kept}
    assert {key: kept[key] + skipped[key] for key in kept} == index.totals
    assert kept["annotations"] == len(index.ground_truth()["annotations"])


def test_problems_are_grouped_by_kind_with_counts(folder: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [3, 9, -2, 5]
    content["annotations"][1]["category_id"] = 1
    content["annotations"][3]["bbox"] = [4, 9, -1, 5]
    with pytest.raises(DatasetError) as caught:
        load_coco(folder, content)
    assert str(caught.value).splitlines() == [
        "train.json: annotation 4711 (image 12, cat.jpg): bbox [3, 9, -2, 5] has negative width."
        " 2 of 4 annotations. Fix them or pass --skip-invalid.",
        "train.json: annotation 4712 (image 3, dog.jpg): category_id 1 is not among the categories."
        " 1 of 4 annotations. Fix it or pass --skip-invalid.",
    ]


def test_at_most_ten_kinds_are_listed(folder: Path) -> None:
    content = document()
    damaged = 0
    for change, collection, _ in ENTRIES.values():
        if collection == "annotations":
            other = document()
            change(other)
            entry = other["annotations"][0]
            if entry is not None and entry.get("id") == 4711:
                entry["id"] = 5000 + damaged
            content["annotations"].append(entry)
            damaged += 1
    with pytest.raises(DatasetError) as caught:
        load_coco(folder, content)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert re.fullmatch(r"train\.json: and \d+ problems of \d+ other kinds\.", lines[-1])
    assert len(load_coco(folder, content, skip_invalid=True).problems) == damaged


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "train.json: is not valid JSON: Expecting value at line 1, column 1. Is it complete?"),
        (
            json.dumps(DOCUMENT, indent=1)[:200],
            "train.json: is not valid JSON: Unterminated string starting at line 17, column 4. Is it complete?",
        ),
        ("\x00\xff", "train.json: is not valid JSON"),
        ("[]", "train.json: must be a JSON object with ['images', 'annotations', 'categories'], got []."),
        ('{"images": [], "annotations": []}', "train.json: has no ['categories']; a COCO file has"),
        ('{"image": []}', "train.json: has no ['images', 'annotations', 'categories']; a COCO file has"),
        ('{"images": {}, "annotations": [], "categories": []}', "train.json: 'images' must be a list, got {}."),
        ('{"images": [], "annotations": [], "categories": []}', "train.json: has no valid categories."),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            "train.json: has no valid images.",
        ),
        ("[" * 100_000, "train.json: is nested too deeply to be a COCO file."),
    ],
)
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_an_unusable_file_is_answered_by_one_line(folder: Path, text: str, line: str, skip_invalid: bool) -> None:
    (folder / "train.json").write_text(text)
    with pytest.raises(DatasetError) as caught:
        CocoIndex.load(folder / "train.json", folder / "images", skip_invalid=skip_invalid)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_named(folder: Path) -> None:
    (folder / "train.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DatasetError, match=r"train\.json: is not text in UTF-8: byte 12"):
        CocoIndex.load(folder / "train.json", folder / "images")


def test_a_missing_file_and_a_missing_folder_are_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.json: cannot be read: No such file"):
        CocoIndex.load(folder / "nowhere.json", folder / "images")
    (folder / "train.json").write_text(json.dumps(DOCUMENT))
    with pytest.raises(DatasetError, match="pictures: the images folder does not exist"):
        CocoIndex.load(folder / "train.json", folder / "pictures")
