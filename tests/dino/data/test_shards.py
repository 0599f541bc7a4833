"""Pictures in tar shards give the batches of loose files to the last bit; damaged and odd shards are named."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import os
import re
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.commands.visualize import find_annotated
from dino.data import CocoIndex, DatasetError, ImageError, Loader, find_splits, open_image
from dino.data import shards as shards_module
from dino.data.coco.files import picture_size
from dino.data.convert import write_coco
from dino.data.held_out import hold_out
from dino.data.shards import open_picture_file, shard_of
from dino.data.tar_listing import listing
from dino.inference.sources import find_sources
from dino.training.train import train
from tests.dino.data.data_examples import numbered_split
from tests.dino.data.format_examples import write
from tests.dino.data.shard_examples import GOOD, boxes_of, coco_file, jpeg, load, write_shard
from tests.dino.data.test_loader import assert_same, make_loader
from tests.dino.training.train_toys import assert_same_weights, quick_runs, toy_config, write_rectangles


def pack(loose: Path, packed: Path, shards: int = 2, folder: str = "") -> Path:
    """Move the pictures of a folder into shards, and copy its COCO file beside them."""
    files = sorted(loose.glob("*.png"))
    for k in range(shards):
        content = [(folder + file.name, file.read_bytes()) for file in files[k::shards]]
        write_shard(packed / f"shard-{k:06}.tar", content)
    write(packed / "_annotations.coco.json", (loose / "_annotations.coco.json").read_text())
    return packed


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_batches_are_those_of_loose_files_from_any_position(done: int, workers: int, tmp_path: Path) -> None:
    numbered_split(tmp_path / "loose", 9)
    packed = pack(tmp_path / "loose", tmp_path / "packed", 3)
    (tmp_path / "loose" / "4.png").write_bytes(b"garbage")  # both have a damaged picture
    expected = list(make_loader(tmp_path / "loose").batches(1))
    assert any(batch.problems for batch in expected)
    pack(tmp_path / "loose", packed, 3)
    loader = make_loader(packed, workers=workers)
    for _, batch in zip(range(done), loader.batches(1), strict=False):  # left in the middle, as by a signal
        assert len(batch) == 2
    rest = list(loader.batches(1, images_done=2 * done))
    assert len(rest) == len(expected) - done == 4 - done
    for one, other in zip(expected[done:], rest, strict=True):
        for problem in other.problems:
            assert "/packed/shard-000001.tar/4.png (image 1004): cannot be read as an image" in problem
        assert len(one.problems) == len(other.problems)
        one.problems = other.problems = []
        assert_same(one, other)


def test_a_run_on_loose_files_continues_on_shards_to_the_last_bit(tmp_path: Path, monkeypatch) -> None:
    quick_runs(monkeypatch)
    loose, packed = write_rectangles(tmp_path / "loose"), tmp_path / "packed"
    for split in ("train", "valid"):
        pack(loose / split, packed / split)
    options = {"evaluate_every": 1, "batch_size": 2}
    train(toy_config(loose, tmp_path / "whole", **options), quiet=True)
    train(toy_config(loose, tmp_path / "parts", epochs=1, **options), quiet=True)
    train(toy_config(packed, tmp_path / "parts", resume=True, **options), quiet=True)
    for model in ("final", "best"):
        assert_same_weights(tmp_path / "whole" / model, tmp_path / "parts" / model)


def test_threads_and_forked_processes_share_open_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more shards than may be open at once, without a warning of an open file."""
    numbered_split(tmp_path / "loose", 24)
    packed = pack(tmp_path / "loose", tmp_path / "packed", 6)
    monkeypatch.setattr(shards_module, "_opened", shards_module.lru_cache(2)(shards_module._opened.__wrapped__))
    paths = {
        k: packed / f"shard-{sorted(map(str, range(24))).index(str(k)) % 6:06}.tar" / f"{k}.png" for k in range(24)
    }
    expected = {k: open_image(tmp_path / "loose" / f"{k}.png").tobytes() for k in paths}
    assert all(open_image(path).tobytes() == expected[k] for k, path in paths.items())
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(k for _ in range(5) for k, path in paths.items() if open_image(path).tobytes() != expected[k])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        read()
        os._exit(len(wrong))
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0 and not wrong


def test_a_file_in_a_shard_can_be_read_in_any_order(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    write_shard(tmp_path / "a.tar", [("before", b"x" * 700), ("b", content), ("after", b"y" * 700)])
    opened = open_picture_file(tmp_path / "a.tar" / "b")
    assert not isinstance(opened, Path)
    with opened as file:
        assert file.read(3) == content[:3] and file.tell() == 3
        assert file.seek(-5, os.SEEK_END) == len(content) - 5 and file.read() == content[-5:] and file.read() == b""
        assert file.seek(200_000) and file.read(10) == content[200_000:200_010]
        assert file.seek(5, os.SEEK_CUR) and file.read() == content[200_015:]
        assert file.seek(10**9) and file.read(1) == b""


def test_a_folder_may_be_called_like_a_shard(tmp_path: Path) -> None:
    numbered_split(tmp_path / "a.tar", 2)
    assert shard_of(tmp_path / "a.tar" / "0.png") is None
    assert len(CocoIndex.load(tmp_path / "a.tar" / "_annotations.coco.json", tmp_path / "a.tar")) == 2
    assert open_image(tmp_path / "a.tar" / "0.png").size == (32, 32)
    with pytest.raises(ImageError, match=r"nowhere\.tar/0\.png: the file does not exist"):
        open_image(tmp_path / "nowhere.tar" / "0.png")


def test_pictures_are_upright_and_have_the_size_of_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_shard(tmp_path / "a.tar", [("r.jpg", jpeg(exif=exif)), ("r.json", boxes_of()), ("bad.jpg", b"\xff\xd8")])
    assert open_image(tmp_path / "a.tar" / "r.jpg").size == picture_size(tmp_path / "a.tar" / "r.jpg") == (72, 96)
    with pytest.raises(DatasetError, match=r"^a\.tar/bad\.jpg: has no width and height, and the file cannot be read"):
        load(tmp_path)
    assert load(tmp_path, skip_invalid=True).sizes_wh.tolist() == [[72, 96]]
    with pytest.raises(ImageError, match=r"a\.tar/bad\.jpg \(image 3\): cannot be read as an image"):
        open_image(tmp_path / "a.tar" / "bad.jpg", image_id=3)
    with pytest.raises(ImageError, match=r"a\.tar/none\.jpg: the file does not exist"):
        open_image(tmp_path / "a.tar" / "none.jpg")


# The name in the COCO file; the names in shard a and b; where it is found, or the error.
NAMED = {
    "in the folder of the shard": ("1.jpg", ["img/1.jpg"], [], "a.tar/img/1.jpg"),
    "with its folder": ("img/1.jpg", ["img/1.jpg"], [], "a.tar/img/1.jpg"),
    "with separators of windows": ("img\\1.jpg", ["img/1.jpg"], [], "a.tar/img/1.jpg"),
    "with the shard": ("b.tar/1.jpg", ["1.jpg"], ["1.jpg"], "b.tar/1.jpg"),
    "outside before inside a folder": ("1.jpg", ["1.jpg", "small/1.jpg"], [], "a.tar/1.jpg"),
    "decomposed letters": ("caf\u00e9.jpg", ["cafe\u0301.jpg"], [], "a.tar/cafe\u0301.jpg"),
    "not in latin letters": ("\u732b/\u0448.jpg", [], ["\u732b/\u0448.jpg"], "b.tar/\u732b/\u0448.jpg"),
    "long": (
        f"{'x' * 120}/{'y' * 150}.jpg",
        [f"{'x' * 120}/{'y' * 150}.jpg"],
        [],
        f"a.tar/{'x' * 120}/{'y' * 150}.jpg",
    ),
    "in two shards": ("1.jpg", ["1.jpg"], ["1.jpg"], r"but in several shards\. Name one of: a\.tar/1\.jpg, b\.tar/1"),
    "only the end of a name": ("1.jpg", ["11.jpg"], [], r"the file '1\.jpg' is missing from \S+packed\. 1 of 1"),
    "in another folder": ("new/1.jpg", ["old/1.jpg"], [], r"the file 'new/1\.jpg' is missing from"),
    "not in that shard": ("b.tar/1.jpg", ["1.jpg"], ["2.jpg"], r"the file 'b\.tar/1\.jpg' is missing from"),
}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("case", NAMED)
def test_coco_files_name_pictures_in_shards(case: str, kind: int, tmp_path: Path) -> None:
    name, first, second, wanted = NAMED[case]
    root = tmp_path / "packed"
    for shard, names in (("a.tar", first), ("b.tar", second)):
        write_shard(root / shard, [(name, jpeg()) for name in names], format=kind)
    coco_file(root, name)
    if wanted.startswith(("a.tar", "b.tar")):
        index = load(root)
        assert index.file_names == (wanted,) and open_image(index.image_path(0)).size == (96, 72)
    else:
        with pytest.raises(DatasetError, match=wanted):
            load(root)


def test_names_that_occur_in_the_shards_of_each_split_are_told_apart(tmp_path: Path) -> None:
    for split, size in (("train", 32), ("val", 40)):
        numbered_split(tmp_path / split, 3, size)
        write_shard(
            tmp_path / "data" / f"{split}-0.tar", [(f.name, f.read_bytes()) for f in (tmp_path / split).glob("*.png")]
        )
        text = (tmp_path / split / "_annotations.coco.json").read_text()
        write(tmp_path / "data" / f"{split}.json", text.replace(' "width": 32,', "").replace(' "width": 40,', ""))
    layout = find_splits(tmp_path / "data")
    assert layout.require("train").load().file_names[0] == "train-0.tar/0.png"
    valid = layout.require("valid").load()
    assert valid.file_names[0] == "val-0.tar/0.png" and valid.sizes_wh[0].tolist() == [40, 40]


def test_loose_files_come_before_those_in_shards(tmp_path: Path) -> None:
    """The archive that a folder was unpacked from is often left beside it."""
    numbered_split(tmp_path / "train", 3)
    (tmp_path / "train" / "_annotations.coco.json").rename(tmp_path / "train.json")
    write_shard(tmp_path / "train.tar", [(f"{k}.png", b"old") for k in range(3)])
    assert find_splits(tmp_path).require("train").images == tmp_path / "train"


def test_pictures_in_shards_are_inputs_of_commands(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [("x/1.jpg", jpeg()), ("2.jpg", jpeg()), ("2.txt", b"")])
    sources = find_sources([shard, shard / "2.jpg"])
    assert [source.path for source in sources] == [f"{shard}/2.jpg", f"{shard}/x/1.jpg"]
    assert [source.name for source in sources] == [Path("2.jpg"), Path("x/1.jpg")]
    assert [image.size for source in sources for _, image in source.frames()] == [(96, 72)] * 2
    with pytest.raises(FileNotFoundError, match=r"b\.tar: no images in this shard"):
        find_sources([write_shard(tmp_path / "b.tar", [])])
    for name in ("2.jpg", "a.tar/2.jpg"):
        coco_file(tmp_path, name, "x/1.jpg")
        found = find_annotated(tmp_path / "train.json", shard / "2.jpg")
        assert found.size_wh == (96, 72) and found.index.file_names == ("a.tar/2.jpg",)


def test_names_that_are_not_utf_8_are_converted_and_held_out(tmp_path: Path) -> None:
    names = ["caf\xe9", "b"]
    files = [(f"{name}.{kind}", content) for name in names for kind, content in (("jpg", jpeg()), ("json", boxes_of()))]
    write_shard(tmp_path / "a.tar", files, format=tarfile.GNU_FORMAT, encoding="latin-1")
    index = load(tmp_path)
    assert index.file_names == ("a.tar/b.jpg", "a.tar/caf\udce9.jpg")
    assert {part.file_names for part in hold_out(index, 0.5, 0)} == {index.file_names[:1], index.file_names[1:]}
    file = write_coco(index, tmp_path / "out")
    again = CocoIndex.load(file, tmp_path / "out")
    assert again.file_names == ("b.jpg", "caf\udce9.jpg")
    assert all(open_image(again.image_path(i)).size == (96, 72) for i in range(2))


def test_pictures_in_several_shards_are_converted_apart(tmp_path: Path) -> None:
    for k in range(2):
        write_shard(tmp_path / f"{k}.tar", [("same.jpg", jpeg(96, 72 + k)), ("same.json", boxes_of())])
    index = load(tmp_path)
    again = CocoIndex.load(write_coco(index, tmp_path / "out"), tmp_path / "out")
    assert again.file_names == ("0/same.jpg", "1/same.jpg") and again.sizes_wh.tolist() == index.sizes_wh.tolist()
    assert [open_image(again.image_path(i)).height for i in range(2)] == [72, 73]


def entry(kind: bytes, name: str = "a.jpg", link: str = "good.jpg") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "it is a link. Write the shard with tar --dereference"),
        (tarfile.LNKTYPE, "it is a link"),
        (tarfile.FIFOTYPE, "it is no regular file"),
        (tarfile.CHRTYPE, "it is no regular file"),
        (tarfile.GNUTYPE_SPARSE, "it is a sparse file"),
        (tarfile.DIRTYPE, None),
    ],
)
def test_entries_that_are_no_files_are_not_read(kind: bytes, message: str | None, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(entry(kind))
    write_shard(tmp_path / "b.tar", GOOD)
    if message is None:
        assert load(tmp_path).file_names == ("b.tar/good.jpg",)
        return
    with pytest.raises(DatasetError, match=rf"a\.tar/a\.jpg: is not read: {message}"):
        load(tmp_path)
    assert load(tmp_path, skip_invalid=True).file_names == ("b.tar/good.jpg",)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [],
        "categories": [],
    }
    write(tmp_path / "boxes" / "boxes.json", json.dumps(content))
    with pytest.raises(DatasetError, match=rf"'a\.jpg' is missing from \S+: in a\.tar, {message}"):
        CocoIndex.load(tmp_path / "boxes" / "boxes.json", tmp_path)


BROKEN = "is cut off or damaged at byte "
DAMAGED: dict[str, tuple[Callable[[bytes, int], bytes], str, int]] = {  # of three pictures, how many can be read
    "empty": (lambda c, b: b"", f"{BROKEN}0 of 0: empty file", 0),
    "cut in a picture": (lambda c, b: c[: b + 700], rf"{BROKEN}[\d,]+ of [\d,]+: 'b\.jpg' reaches beyond its end", 1),
    "cut in a header": (lambda c, b: c[: b + 100], f"{BROKEN}.*: a header is damaged", 1),
    "cut between pictures": (lambda c, b: c[:b], f"{BROKEN}.*: the mark of its end is missing", 1),
    "header overwritten": (lambda c, b: c[:b] + b"\xff" * 512 + c[b + 512 :], f"{BROKEN}.*: a header is damaged", 1),
    "size overwritten": (lambda c, b: c[: b + 124] + b"7" * 11 + c[b + 135 :], f"{BROKEN}.*: a header is damaged", 1),
    "not a tar file": (lambda c, b: b"GIF89a" * 1000, f"{BROKEN}0 of 6,000: ", 0),
    "compressed": (lambda c, b: gzip.compress(c), "is compressed, .* Unpack it with gunzip", 0),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_shard_is_named_and_the_rest_can_be_used(case: str, beside: bool, tmp_path: Path) -> None:
    damage, message, readable = DAMAGED[case]
    inside = () if beside else (("json", boxes_of()),)
    files = [(f"{k}.{kind}", content) for k in "abc" for kind, content in (("jpg", jpeg()), *inside)]
    content = write_shard(tmp_path / "1.tar", files).read_bytes()
    (tmp_path / "1.tar").write_bytes(damage(content, content.index(b"b.jpg")))
    write_shard(tmp_path / "0.tar", GOOD[:1] if beside else GOOD)
    if beside:
        coco_file(tmp_path, *(f"{k}.jpg" for k in ("good", *"abc")))
        wanted = (
            rf"'{'b' if readable else 'a'}\.jpg' is missing from \S+; 1\.tar {message}.*\. {3 - readable} of 4 images"
        )
    else:
        wanted = rf"^1\.tar: {message}.*\. 1 of 2 shards\. Fix it or pass --skip-invalid\.$"
    with pytest.raises(DatasetError, match=wanted):
        load(tmp_path)
    index = load(tmp_path, skip_invalid=True)
    assert len(index) == 1 + readable and all(open_image(index.image_path(i)) for i in range(len(index)))


@given(
    files=st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=130),
            st.binary(max_size=1100),
            st.sampled_from([0, 1.5, 2**40]),  # when it was changed
        ),
        min_size=1,
        max_size=6,
    ),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    headers=st.sampled_from([{}, {"comment": "x"}]),
)
def test_listings_are_those_of_tarfile(files: list, kind: int, headers: dict, tmp_path_factory) -> None:
    shard = tmp_path_factory.mktemp("shard") / "a.tar"
    with tarfile.open(shard, "w", format=kind, pax_headers=headers) as tar:
        for name, content, changed in files:
            made = tarfile.TarInfo(name)
            made.size, made.mtime = len(content), changed
            with contextlib.suppress(ValueError):  # USTAR has no such long names or late times
                tar.addfile(made, io.BytesIO(content))
    with tarfile.open(shard) as tar:
        expected = {os.path.normpath(one.name): (one.offset_data, one.size) for one in tar if one.isreg()}
    found = listing(shard)
    inside = {name for name in expected if not name.startswith(("/", "../")) and name != ".." and "\0" not in name}
    inside -= {name for name in expected if re.match(r"__[^/]*__($|/)", name)}
    assert not found.damage and set(found.names()) == inside
    assert all(found.find(name) == expected[name] for name in inside) and found.find("no such name") is None


def test_a_size_that_leads_back_does_not_hang(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [*GOOD, ("a.jpg", jpeg())])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    start = content.index(b"a.jpg")
    content[start + 124 : start + 136] = b"\xff" * 10 + b"\xf0\x00"  # -4096
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    (tmp_path / "a.tar").write_bytes(content)
    assert "'a.jpg' reaches beyond its end" in listing(tmp_path / "a.tar").damage


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", ["replaced", "overwritten", "cut", "deleted"])
def test_a_shard_that_changes_during_training_is_named(change: str, workers: int, tmp_path: Path) -> None:
    numbered_split(tmp_path / "loose", 6)
    packed = pack(tmp_path / "loose", tmp_path / "packed", 1)
    shard = packed / "shard-000000.tar"
    shards_module._opened.cache_clear()
    loader: Loader = make_loader(packed, workers=workers, strict=True)
    content = shard.read_bytes()
    if change == "replaced":
        shard.rename(tmp_path / "old.tar")
        shard.write_bytes(content[512:])
    elif change == "overwritten":
        shard.write_bytes(bytes(reversed(content)))
        os.utime(shard, ns=(0, 0))
    elif change == "cut":
        os.truncate(shard, 600)
    else:
        shard.unlink()
    message = "the file does not exist" if change == "deleted" else "was changed while it was in use. Start again"
    with pytest.raises(ImageError, match=rf"shard-000000\.tar/\d\.png \(image \d+\): .*{message}"):
        list(loader)


def test_an_open_shard_may_be_deleted_or_replaced_whole(tmp_path: Path) -> None:
    numbered_split(tmp_path / "loose", 6)
    packed = pack(tmp_path / "loose", tmp_path / "packed", 1)
    loader = make_loader(packed)
    expected = list(loader)
    (packed / "shard-000000.tar").unlink()
    for one, other in itertools.zip_longest(expected, loader):
        assert_same(one, other)
    numbered_split(tmp_path / "other", 6, 40)
    pack(tmp_path / "other", packed, 1)
    assert {tuple(size) for batch in make_loader(packed) for size in batch.sizes_hw.tolist()} == {
        (40 + k, 40) for k in range(4)
    }
