"""The index of a large COCO file holds what the file holds, is read once, and is made anew after any change."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino.data import CocoIndex, DatasetError, build_datasets, build_loader
from dino.data.coco import boxes, columns, store
from dino.data.coco.stream import COLLECTIONS
from tests.dino.data.data_examples import document, load_coco, write_images, write_split

A_MINUTE_AGO = time.time_ns() - 60 * 10**9


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "LARGE", 0)
    monkeypatch.setattr(boxes, "_SORTED_AT_A_TIME", 30)
    monkeypatch.setattr(boxes, "_READ_AT_A_TIME", 20)
    monkeypatch.setattr(columns, "_ROWS_AT_A_TIME", 30)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """The files that were read, in order."""
    found = []

    def read(file: Path, name: str, **options: Any) -> Iterator[Any]:
        found.append(name)
        return original(file, name, **options)

    original = store.read_collections
    monkeypatch.setattr(store, "read_collections", read)
    return found


def in_memory(folder: Path, content: dict[str, Any], *, skip_invalid: bool = False) -> CocoIndex:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "LARGE", 1 << 40)
        return load_coco(folder, content, skip_invalid=skip_invalid)


def summary(index: CocoIndex) -> tuple[Any, ...]:
    return index.ground_truth(), list(index.file_names), index.describe_problems(), index.totals, index.categories


def large(seed: int, images: int = 40, boxes: int = 300) -> dict[str, Any]:
    """A document whose annotations are in no order."""
    rng = random.Random(seed)
    ids = rng.sample(range(1, 10**9), images)
    return {
        "images": [{"id": i, "file_name": f"{k}.png", "width": 50, "height": 40} for k, i in enumerate(ids)],
        "annotations": [
            {
                "id": k,
                "image_id": rng.choice(ids[: images // 2]),
                "category_id": rng.choice([5, 700, -3]),
                "bbox": [rng.uniform(0, 30), rng.randint(0, 20), rng.uniform(0, 20), rng.randint(1, 20)],
                "iscrowd": rng.choice([0, 0, 0, 1]),
                **rng.choice([{}, {"area": rng.uniform(1, 100)}]),
            }
            for k in range(boxes)
        ],
        "categories": [{"id": i, "name": f"n{i}"} for i in (700, -3, 5)],
    }


def written(tmp_path: Path, content: dict[str, Any]) -> Path:
    """The folder of a document whose images are there, and changed a minute ago."""
    write_images(tmp_path / "images", content["images"])
    (tmp_path / "train.json").write_text(json.dumps(content))
    age(tmp_path)
    return tmp_path


def age(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, ns=(A_MINUTE_AGO, A_MINUTE_AGO))


def load(folder: Path, *, skip_invalid: bool = False) -> CocoIndex:
    return CocoIndex.load(folder / "train.json", folder / "images", skip_invalid=skip_invalid)


@pytest.mark.parametrize("order", [*permutations(COLLECTIONS)])
def test_an_index_holds_what_the_file_holds_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    content = large(0)
    content = {key: content[key] for key in order}
    expected = in_memory(written(tmp_path, content), content)
    assert summary(load(tmp_path)) == summary(load(tmp_path)) == summary(expected)
    reference = sorted(content["annotations"], key=lambda a: a["image_id"])  # stable
    assert [a["bbox"] for a in expected.ground_truth()["annotations"]] == [a["bbox"] for a in reference]
    per_category: dict[int, tuple[int, int]] = dict.fromkeys((-3, 5, 700), (0, 0))
    for a in reference:
        count, crowds = per_category[a["category_id"]]
        per_category[a["category_id"]] = count + 1, crowds + a["iscrowd"]
    assert load(tmp_path).boxes_per_category == expected.boxes_per_category == per_category


@pytest.mark.parametrize("order", [*permutations(COLLECTIONS)])
def test_problems_are_the_same_with_and_without_an_index(tmp_path: Path, order: tuple[str, ...]) -> None:
    content = large(1)
    written(tmp_path, content)
    content["images"][0]["width"] = -1
    content["images"][1]["file_name"] = "nowhere.png"
    content["annotations"][7]["bbox"] = [1, 2, 3]
    content["annotations"][8].update(category_id=9, bbox=None)
    content["annotations"][9]["area"] = "12"
    content["categories"].append({"id": 5, "name": "again"})
    content = {key: content[key] for key in order}
    expected = in_memory(tmp_path, content, skip_invalid=True)
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            load(tmp_path)
        with pytest.raises(DatasetError) as wanted:
            in_memory(tmp_path, content)
        assert str(caught.value) == str(wanted.value)
        assert summary(load(tmp_path, skip_invalid=True)) == summary(expected)


def test_many_problems_are_counted_and_not_kept(tmp_path: Path) -> None:
    content = large(2, boxes=1500)
    for annotation in content["annotations"][:1200]:
        annotation["bbox"] = [0, 0, -1, 1]
    index = load(written(tmp_path, content), skip_invalid=True)
    assert index.describe_problems()[0].endswith("Skipped 1200 of 1500 annotations.")
    assert len(index.problems) == 1200 and len(list(index.problems)) == 1000


def test_a_file_is_read_once(tmp_path: Path, readings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, document())
    load(tmp_path)
    assert "4 boxes in 3 images, indexed in" in capsys.readouterr().err
    for _ in range(3):
        load(tmp_path)
    assert readings == ["train.json"] and capsys.readouterr().err == ""
    assert [path.name for path in (tmp_path / ".dino-index").iterdir() if path.is_dir()] == ["train.json"]


def test_images_and_a_file_that_were_only_touched_or_moved_are_not_read_again(
    tmp_path: Path, readings: list[str]
) -> None:
    folder = written(tmp_path / "a", document())
    load(folder)
    os.utime(folder / "train.json")
    (folder / "images" / "another.png").write_bytes(b"")
    os.utime(folder / "images")
    assert len(load(folder)) == 3
    age(folder)
    (tmp_path / "a").rename(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    for name in "bc":
        assert load(tmp_path / name).image_path(0).is_file()
    assert len(readings) == 1


def rewrite_the_same_size_and_time(folder: Path) -> None:
    state = (folder / "train.json").stat()
    (folder / "train.json").write_text((folder / "train.json").read_text().replace("cat.jpg", "cow.jpg"))
    write_images(folder / "images", [{"id": 1, "file_name": "cow.jpg", "width": 64, "height": 48}])
    os.utime(folder / "train.json", ns=(state.st_atime_ns, state.st_mtime_ns))


def index_file(name: str) -> Path:
    return Path(".dino-index") / "train.json" / name


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / index_file(name)).read_bytes())
        content[len(content) - 3] ^= 4
        (folder / index_file(name)).write_bytes(content)

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "longer": (lambda folder: (folder / "train.json").open("a").write(" "), "has changed since"),
    "same size and time": (rewrite_the_same_size_and_time, "has changed since"),
    "no column": (lambda folder: (folder / index_file("areas.npy")).unlink(), "its index is incomplete"),
    "cut column": (lambda folder: os.truncate(folder / index_file("boxes_xywh.npy"), 140), "its index is damaged"),
    "a bit of a box": (flip("boxes_xywh.npy"), "its index is damaged"),
    "a bit of a name": (flip("letters.npy"), "its index is damaged"),
    "a bit of a class": (flip("classes.npy"), "its index is damaged"),
    "a bit of index.json": (flip("index.json"), "its index is damaged"),
    "empty index.json": (lambda folder: (folder / index_file("index.json")).write_bytes(b""), "its index is damaged"),
    "zeros": (lambda folder: (folder / index_file("index.json")).write_bytes(bytes(900)), "its index is damaged"),
    "no index.json": (lambda folder: (folder / index_file("index.json")).unlink(), "its index is incomplete"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_or_damaged_index_is_noticed_and_made_anew(
    tmp_path: Path, change: str, readings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, document())
    load(folder)
    apply, reason = CHANGES[change]
    apply(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "LARGE", 1 << 40)
        expected = summary(load(folder))
    before = len(readings)
    capsys.readouterr()
    assert summary(load(folder)) == expected
    assert reason in capsys.readouterr().err and len(readings) == before + 1
    assert summary(load(folder)) == expected and len(readings) == before + 1


def test_another_version_or_folder_of_images_is_another_index(
    tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, document())
    write_images(folder / "others", document()["images"])
    load(folder)
    CocoIndex.load(folder / "train.json", folder / "others")
    assert len(readings) == 2
    monkeypatch.setattr(store, "_VERSION", 0)
    CocoIndex.load(folder / "train.json", folder / "others")
    assert len(readings) == 3


@pytest.mark.parametrize("sized", [True, False])
def test_images_that_come_go_or_change_are_noticed(tmp_path: Path, sized: bool, readings: list[str]) -> None:
    content = document()
    if not sized:
        del content["images"][0]["width"]
    folder = written(tmp_path, document())
    (folder / "train.json").write_text(json.dumps(content))
    image, moved = folder / "images" / "cat.jpg", folder / "cat.jpg"
    assert load(folder).sizes_wh.tolist()[1] == [64, 48]
    image.rename(moved)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"the file 'cat.jpg' is missing"):
            load(folder)
    moved.rename(image)
    assert len(load(folder)) == 3
    if not sized:
        Image.new("RGB", (90, 80)).save(image)
        assert load(folder).sizes_wh.tolist()[1] == [90, 80]


def test_where_nothing_can_be_written_the_index_is_in_the_cache_or_in_memory(
    tmp_path: Path, readings: list[str]
) -> None:
    folder = written(tmp_path, document())
    (folder / ".dino-index").write_text("in the way")
    assert summary(load(folder)) == summary(load(folder)) and len(readings) == 1
    assert len(list((tmp_path / "caches" / "dino").glob("*-train.json"))) == 1
    shutil.rmtree(tmp_path / "caches")
    (tmp_path / "caches").write_text("in the way")
    assert len(load(folder)) == 3 and len(readings) == 2


def test_a_full_disk_leaves_nothing_and_reads_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = written(tmp_path, document())
    monkeypatch.setattr(columns.Columns, "save_images", full)
    assert len(load(folder)) == 3
    assert sorted(path.name for path in (folder / ".dino-index").iterdir()) == ["train.json.lock"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = written(tmp_path, document())
    (folder / ".dino-index" / "train.json.123.tmp").mkdir(parents=True)
    assert len(load(folder)) == 3
    assert sorted(path.name for path in (folder / ".dino-index").iterdir()) == ["train.json", "train.json.lock"]
    (folder / "[a].json").write_text(json.dumps(document()))
    (folder / ".dino-index" / "[a].json.123.tmp").mkdir()
    CocoIndex.load(folder / "[a].json", folder / "images")
    assert not list((folder / ".dino-index").glob("*.tmp"))


def test_processes_that_start_together_read_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, document())

    def slow(file: Path, name: str, **options: Any) -> Iterator[Any]:
        (tmp_path / f"reader-{os.getpid()}").touch()
        time.sleep(0.3)
        return original(file, name, **options)

    original = store.read_collections
    monkeypatch.setattr(store, "read_collections", slow)
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.map(load, [folder] * 4, chunksize=1)
    assert len(list(tmp_path.glob("reader-*"))) == 1
    assert all(summary(index) == summary(found[0]) for index in found)


def test_other_processes_get_the_folder_and_not_the_content(tmp_path: Path) -> None:
    content = large(3)
    index = load(written(tmp_path, content))
    part = index.select([5, 1, 30]).select([2, 0])
    for one in (index, part):
        pickled = pickle.dumps(one)
        assert len(pickled) < 4000
        assert summary(pickle.loads(pickled)) == summary(one)
    assert [image["id"] for image in part.ground_truth()["images"]] == index.image_ids[[30, 5]].tolist()
    assert (
        part.ground_truth()["annotations"] == in_memory(tmp_path, content).select([30, 5]).ground_truth()["annotations"]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_an_index_is_that_from_memory(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "valid"):
        write_split(tmp_path / split)

    def batches() -> list[Any]:
        data = build_datasets(tmp_path, val_fraction=0.4).train
        with build_loader(data, 1, train=True, workers=workers) as loader:
            return [(b.images, b.targets.boxes_cxcywh, b.targets.labels, b.image_ids) for b in loader.batches(3)]

    indexed = batches()
    monkeypatch.setattr(store, "LARGE", 1 << 40)
    for one, other in zip(indexed, batches(), strict=True):
        assert all((a == b).all() for a, b in zip(one[:3], other[:3], strict=True)) and one[3] == other[3]


def test_pictures_in_shards_are_in_the_index_until_a_shard_changes(tmp_path: Path, readings: list[str]) -> None:
    folder = written(tmp_path, document())
    shard = folder / "images" / "a.tar"
    with tarfile.open(shard, "w") as out:
        for image in document()["images"]:
            out.add(folder / "images" / image["file_name"], image["file_name"])
            (folder / "images" / image["file_name"]).unlink()
    age(folder)
    expected = load(folder)
    assert list(expected.file_names) == ["a.tar/dog.jpg", "a.tar/cat.jpg", "a.tar/nothing.png"]
    shutil.copy(shard, folder / "images" / "new.tar")
    (folder / "images" / "new.tar").replace(shard)
    assert summary(load(folder)) == summary(expected) and len(readings) == 1
    with tarfile.open(shard, "w"):
        pass
    with pytest.raises(DatasetError, match=r"'cat.jpg' is missing"):
        load(folder)
