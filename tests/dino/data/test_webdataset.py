"""WebDataset's samples are read with the classes and ids that they have; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dino.data import DatasetError, find_splits
from tests.dino.data.format_examples import NAMES, PICTURES, picture, sample, write
from tests.dino.data.shard_examples import GOOD, boxes_of, coco_file, jpeg, load, write_shard


def sample_files(content: bytes, *others: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    return [*others, ("a.jpg", jpeg()), ("a.json", content)]


def column(name: str, **extra: Any) -> bytes:
    return json.dumps({"objects": {"bbox": [[8, 10, 32, 20]], name: [1], **extra}}).encode()


CLASSES = json.dumps([{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]).encode()
CAT = [1, "cat", [8.0, 10.0, 32.0, 20.0], 640.0, False]
# Files of a shard; id and name of the class, box, area and crowd of its only box.
SAMPLES: dict[str, tuple[list[tuple[str, bytes]], list[Any]]] = {
    "names": (sample_files(boxes_of()), CAT),
    "ids and names": (sample_files(boxes_of(category_id=5)), [5, *CAT[1:]]),
    "ids of a file": (
        sample_files(boxes_of("", category_id=7), ("categories.json", CLASSES)),
        [7, "dog", *CAT[2:]],
    ),
    "names of a file": (
        sample_files(boxes_of("dog"), ("x/categories.json", CLASSES)),
        [7, "dog", *CAT[2:]],
    ),
    "lines of a file": (
        sample_files(boxes_of("", category_id=1), ("classes.txt", b"dog\r\ncat\r\n")),
        CAT,
    ),
    "names in a list": (
        sample_files(column("categories"), ("categories.json", b'["dog", "cat"]')),
        CAT,
    ),
    "ids without names": (sample_files(column("category")), [1, "class 1", *CAT[2:]]),
    "a list of annotations": (
        sample_files(json.dumps(json.loads(boxes_of())["annotations"]).encode()),
        CAT,
    ),
    "crowd and area": (sample_files(boxes_of(iscrowd=1, area=99)), [*CAT[:3], 99.0, True]),
    "numbers as text": (
        sample_files(boxes_of(category_id="1", area="640", bbox=["8", 10, 32, 20])),
        CAT,
    ),
    "not next to one another": ([("a.jpg", jpeg()), ("b.jpg", jpeg()), ("a.json", boxes_of())], CAT),
    "key to the first dot": ([("x.y/a.JPG", jpeg()), ("x.y/a.mask.png", b""), ("x.y/a.json", boxes_of())], CAT),
    "longer endings": ([("a.img.jpg", jpeg()), ("a.ann.json", boxes_of())], CAT),
    "the last of one name counts": (
        sample_files(boxes_of(), ("a.jpg", b"old"), ("a.json", b"old")),
        CAT,
    ),
    "metadata and hidden files": (
        sample_files(boxes_of(), ("__meta__/b.json", b"x"), ("._a.jpg", b"x")),
        CAT,
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_are_read(case: str, tmp_path: Path) -> None:
    files, box = SAMPLES[case]
    index = load(write_shard(tmp_path / "a.tar", files))
    columns = index.columns
    i = columns.class_ids[columns.classes[0]].item()
    name = dict(zip(index.categories.ids, index.categories.names, strict=True))[i]
    assert [i, name, columns.boxes_xywh[0].tolist(), columns.areas[0].item(), columns.crowds[0].item()] == box
    assert len(columns.boxes_xywh) == 1 and [note for note in index.notes if "without JSON" not in note] == (
        ["a.tar: no names of class ids (categories.json or classes.txt): class 1, ..."] if "class 1" in box else []
    )


@pytest.mark.parametrize(
    ("ids", "used"),
    [([70, 8], True), ([70, None], False), ([70, 70], False), (["70", 8.0], True), ([None, None], False)],
)
def test_image_ids_are_kept_if_each_image_has_one(ids: list[Any], used: bool, tmp_path: Path) -> None:
    for k, image_id in enumerate(ids):
        content = json.dumps({"image_id": image_id, **json.loads(boxes_of(f"class {k}"))}).encode()
        write_shard(tmp_path / f"{k}.tar", [("same.jpg", jpeg()), ("same.json", content)])  # one key in two shards
    index = load(tmp_path)
    assert index.image_ids.tolist() == (sorted(map(int, ids)) if used else [1, 2])
    assert index.file_names == (("1.tar/same.jpg", "0.tar/same.jpg") if used else ("0.tar/same.jpg", "1.tar/same.jpg"))
    assert index.columns.class_ids[index.columns.classes].tolist() == ([2, 1] if used else [1, 2])
    assert len(index.notes) == (not used and any(ids))


BAD_SAMPLES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "not json": (sample_files(b"{"), r"a\.tar/a\.json: is not valid JSON, Expecting"),
    "not utf-8": (sample_files(b"\xff\xfe{"), r"a\.tar/a\.json: is not valid JSON"),
    "too deep": (sample_files(b"[" * 100_000), r"a\.tar/a\.json: is not valid JSON"),
    "other json": (sample_files(b'{"caption": "x"}'), r"a\.json: has no list of annotations or obj"),
    "no picture": ([("a.json", boxes_of())], r"a\.tar/a\.json: has no image of the same key\. 1 of 2 images"),
    "two pictures": (
        [("a.jpg", jpeg()), ("a.png", jpeg()), ("a.json", boxes_of())],
        r"more than one .*, a\.jpg, a\.png",
    ),
    "dots in names": (
        [("a.1.jpg", jpeg()), ("a.2.jpg", jpeg())],
        r"a\.tar/a: .* a\.1\.jpg, a\.2\.jpg: the key, a, ends",
    ),
    "no class": (sample_files(boxes_of("")), r"a\.json: object 1: has no category or category_id"),
    "no box": (sample_files(b'[{"category": "cat"}]'), r"a\.json: object 1: has no 'bbox'"),
    "no object": (sample_files(b"[[1, 2, 3, 4]]"), r"object 1: must be an object with bbox"),
    "outside": (sample_files(boxes_of(bbox=[100, 0, 9, 9])), r"object 1: bbox .* lies outside its im"),
    "unknown name": (sample_files(boxes_of("dog"), ("classes.txt", b"cat")), r"category 'dog' is not the"),
    "unknown id": (sample_files(boxes_of("", category_id=3), ("classes.txt", b"cat")), r"category_id 3 is"),
    "id of another name": (
        sample_files(boxes_of(category_id=1), ("classes.txt", b"cat\ndog")),
        r"category_id 1 is 'dog', but category is 'cat'",
    ),
    "leads out": (
        [("../a.jpg", jpeg()), ("/a.json", boxes_of())],
        r"a\.tar/\.\./a\.jpg: is not read: its path leads out",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_invalid_samples_are_named_and_can_be_left_out(case: str, tmp_path: Path) -> None:
    files, message = BAD_SAMPLES[case]
    write_shard(tmp_path / "a.tar", [*GOOD, *files])
    with pytest.raises(DatasetError, match=message):
        load(tmp_path)
    index = load(tmp_path, skip_invalid=True)
    assert "a.tar/good.jpg" in index.file_names and len(index.problems) >= 1 and len(index.columns.boxes_xywh) == 1


@pytest.mark.parametrize("content", [b'{"cat": 1}', b"[1]", b"", b'[{"name": "cat"}]', b"{}"])
def test_files_of_classes_that_cannot_be_used_are_named(content: bytes, tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "a.tar", GOOD)
    (tmp_path / "categories.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"^categories\.json: must be \[\{"):
        load(tmp_path)


def only_boxes_loose(root: Path) -> None:
    write_shard(root / "a.tar", [("a.jpg", jpeg())])


UNRECOGNISED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no boxes": (only_boxes_loose, r"no boxes found in COCO JSON, .* or tar shards\. It holds a\.tar"),
    "no pictures": (lambda r: write_shard(r / "a.tar", [("a.txt", b"x")]), "no boxes found in .* It holds a.tar"),
    "other json": (lambda r: write_shard(r / "a.tar", sample_files(b"{}")), "no boxes found in"),
    "compressed": (
        lambda r: write(r / "train" / "0.tar.gz", ""),
        r"0\.tar\.gz is compressed, .* Unpack it with gunzip\.$",
    ),
    "compressed otherwise": (
        lambda r: write(r / "0.tar.xz", ""),
        r"0\.tar\.xz is compressed, .* Unpack it with unxz\.$",
    ),
}


@pytest.mark.parametrize("case", UNRECOGNISED)
def test_what_is_not_recognised_is_said(case: str, tmp_path: Path) -> None:
    make, message = UNRECOGNISED[case]
    tmp_path.mkdir(exist_ok=True)
    make(tmp_path)
    with pytest.raises(DatasetError, match=message) as caught:
        find_splits(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_compressed_shard_beside_others_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", GOOD)
    (tmp_path / "train-1.tar.gz").write_bytes(gzip.compress((tmp_path / "train-0.tar").read_bytes()))
    (tmp_path / "download.tar.gz").write_bytes(b"")  # what the shards came in
    with pytest.raises(
        DatasetError, match=r"^train-1\.tar\.gz: is compressed, .* Unpack it with gunzip\. 1 of 2 shards"
    ):
        load(tmp_path)
    assert len(load(tmp_path, skip_invalid=True)) == 1
    coco_file(tmp_path, "b.jpg")
    with pytest.raises(DatasetError, match=r"'b\.jpg' is missing from \S+; download\.tar\.gz is compressed"):
        load(tmp_path / "train.json")


def test_boxes_beside_and_inside_shards_are_two_formats(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", GOOD)
    coco_file(tmp_path, "good.jpg")
    with pytest.raises(DatasetError, match=r"and WebDataset shards \(train-0\.tar\)\. Pass one as --data: "):
        find_splits(tmp_path)
    write_shard(tmp_path / "train-1.tar", [])
    with pytest.raises(
        DatasetError, match=r"COCO JSON \(train\.json\) and WebDataset shards \(train-\*\.tar\)\. Move all"
    ):
        find_splits(tmp_path)
    assert find_splits(tmp_path / "train.json").format == "COCO JSON"
    assert find_splits(tmp_path / "train-0.tar").format == "WebDataset shards"


def test_images_without_json_are_noted(tmp_path: Path) -> None:
    for name in ("a 1.png", "c.jpeg"):
        picture(tmp_path / name)
    files = [(name, (tmp_path / name).read_bytes()) for name in ("a 1.png", "c.jpeg")]
    write_shard(tmp_path / "data" / "a.tar", [*files, ("a 1.json", sample("a 1.png").encode())])
    index = load(tmp_path / "data")
    assert index.notes == ("a.tar: 1 image without JSON: read as without boxes",)
    assert index.categories.names == (NAMES[PICTURES["a 1.png"][0][0]],) and len(index) == 2
    assert re.fullmatch("a.tar/.*", index.file_names[0])
