"""Which files are looked at, under which ids and names, and what becomes of broken ones."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.inference.annotated import coco_images
from dino.inference.files import output_name, predict_files
from dino.inference.results import JsonList
from dino.inference.settings import Settings
from dino.inference.sources import Source, find_sources
from tests.dino.tools_toys import noise_picture, tiny_detector, write_split

ALL = Settings(threshold=0.0, top_k=4)


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture
def album(tmp_path):
    """Three images, one of them in a folder inside, and a text."""
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise_picture().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_broken_files_are_noted_and_the_rest_is_done(detector, album):
    sources = [*find_sources([album], recursive=True), Source(str(album / "notes.txt"), Path("notes.txt"))]
    outcomes = list(predict_files(detector, sources, ALL, pictures=album / "out"))
    assert [outcome.unreadable is None for outcome in outcomes] == [True, True, True, False]
    assert "notes.txt" in (outcomes[3].unreadable or "")
    path = str(album / "deep/er/c.webp")
    picture = "deep/er/c.webp.jpg"
    assert outcomes[2].image == {"id": 3, "file_name": path, "width": 80, "height": 60, "picture": picture}
    assert [result["image_id"] for o in outcomes for result in o.results] == [1] * 4 + [2] * 4 + [3] * 4
    written = sorted(str(path.relative_to(album / "out")) for path in (album / "out").rglob("*") if path.is_file())
    assert written == ["a.JPG", "b.png", "deep/er/c.webp.jpg"]
    drawn = np.asarray(Image.open(album / "out" / "b.png"))
    assert drawn.shape == (600, 800, 3)
    plain = Image.open(album / "b.png").resize((800, 600), Image.Resampling.BICUBIC)
    assert (drawn != np.asarray(plain)).any()


def test_results_are_those_of_the_detector(detector, album):
    path = str(album / "b.png")
    (outcome,) = predict_files(detector, find_sources([path]), Settings(threshold=0.0))
    assert outcome.results == detector.predict(path, 0.0).to_coco(1)
    assert outcome.found is not None and outcome.found.path == path and not (album / "out").exists()


def test_files_of_one_name_stay_apart(detector, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        noise_picture(seed=ord(folder)).save(tmp_path / folder / "x.jpg")
    inputs = [tmp_path / "a/x.jpg", tmp_path / "b/x.jpg"]
    images = [o.image for o in predict_files(detector, find_sources(inputs), ALL, pictures=tmp_path / "out")]
    assert [image["file_name"] for image in images] == [str(path) for path in inputs]
    assert [image["picture"] for image in images] == ["x.jpg", "x-2.jpg"]
    assert all((tmp_path / "out" / image["picture"]).is_file() for image in images)


def test_a_picture_that_cannot_be_written_loses_no_result(detector, album):
    (album / "out").mkdir()
    (album / "out" / "b.png").mkdir()
    (album / "out" / "deep").write_text("a file where a folder is needed")
    outcomes = list(predict_files(detector, find_sources([album], recursive=True), ALL, pictures=album / "out"))
    assert [len(outcome.results) for outcome in outcomes] == [4, 4, 4]
    assert [outcome.unwritten is None for outcome in outcomes] == [True, False, False]
    assert "b.png: cannot be written" in (outcomes[1].unwritten or "") and "picture" not in outcomes[1].image


def test_a_full_disk_loses_no_result_and_leaves_no_part_of_a_picture(detector, album, monkeypatch):
    def save(image, path, **options):
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    (outcome,) = predict_files(detector, find_sources([album / "b.png"]), ALL, pictures=album / "out")
    assert len(outcome.results) == 4 and "No space left on device" in (outcome.unwritten or "")
    assert not list((album / "out").iterdir())


def test_progress_comes_after_every_file(detector, album, monkeypatch):
    outcomes = predict_files(detector, find_sources([album], recursive=True), ALL)
    next(outcomes)
    monkeypatch.setattr(detector, "detect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(outcomes)


# Ids and sizes of a COCO file


def test_ids_and_sizes_are_those_of_the_coco_file(tmp_path):
    annotations = write_split(tmp_path / "valid")
    found = coco_images(annotations, find_sources([tmp_path / "valid"]))
    assert {path: (image.id, image.size_wh) for path, image in found.items()} == {
        str(tmp_path / "valid" / f"{i}.png"): (100 + i, (64 + i, 48)) for i in range(3)
    }


def coco_file(folder: Path, *images: tuple[int, str]) -> Path:
    (folder / "coco.json").write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in images]}))
    return folder / "coco.json"


@pytest.mark.parametrize("below", [True, False])
def test_the_end_of_the_path_decides_between_equal_names(tmp_path, below):
    annotations = coco_file(tmp_path, (1, "x/a.png"), (2, "y/a.png"), (3, "a.png"))
    for folder, expected in (("x", 1), ("y", 2), ("z", 3)):
        path = tmp_path / folder / "a.png"
        source = Source(str(path), Path(folder, "a.png") if below else Path("a.png"))
        assert coco_images(annotations, [source])[str(path)].id == expected


def test_an_image_that_is_not_known_once_is_an_error(tmp_path):
    annotations = coco_file(tmp_path, (1, "x/a.png"), (2, "y/a.png"), (3, "b.png"))
    with pytest.raises(ValueError, match=r"has 2 images called a\.png"):
        coco_images(annotations, [Source(str(tmp_path / "z/a.png"), Path("a.png"))])
    with pytest.raises(ValueError, match=r"does not have z\.png"):
        coco_images(annotations, [Source(str(tmp_path / "z.png"), Path("z.png"))])
    both = [Source(str(tmp_path / folder / "b.png"), Path("b.png")) for folder in ("x", "y")]
    with pytest.raises(ValueError, match=r"image 3 would be both .*x/b\.png and .*y/b\.png"):
        coco_images(annotations, both)


@pytest.mark.parametrize("content", ["{}", "not JSON", "[]", '{"images": null}', '{"images": {}}'])
def test_what_is_not_a_coco_file_is_named(tmp_path, content):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(ValueError, match=r"coco\.json: (has no|is not valid JSON|must be a JSON|'images' must be)"):
        coco_images(tmp_path / "coco.json", [])


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "96"},
        {"id": 96.0},
        {"id": 96, "width": 80.0, "height": "60"},
        {"id": 96, "width": None, "height": 60},
        {"id": 96, "file_name": "album\\a.png"},
        {"id": 96, "file_name": "/home/other/album/a.png"},
        {"id": 96, "file_name": "D:\\data\\album\\a.png"},
    ],
)
def test_entries_are_read_as_in_the_data(tmp_path, entry):
    others = [{"id": "x", "file_name": "other.png"}, {"file_name": 3}, None, {"id": 1, "file_name": "/b/a.png"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"file_name": "album/a.png"} | entry, *others]}))
    path = str(tmp_path / "album/a.png")
    found = coco_images(tmp_path / "coco.json", [Source(path, Path("a.png"))])
    assert found[path].id == 96 and found[path].size_wh == ((80, 60) if entry.get("width") else None)


@pytest.mark.parametrize("entry", [{"id": "x"}, {}, {"id": 1, "width": -3}, {"id": 1, "height": "tall"}])
def test_an_invalid_entry_of_an_image_is_named(tmp_path, entry):
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"file_name": "a.png"} | entry]}))
    with pytest.raises(ValueError, match=r"coco\.json: the image a\.png: (id|has no 'id'|width|height)"):
        coco_images(tmp_path / "coco.json", [Source(str(tmp_path / "a.png"), Path("a.png"))])


def test_output_names_do_not_collide():
    taken: set[str] = set()
    wanted = ["a.png", "a.png", "a.webp", "a.webp.jpg", "b/a.png", "a.png", "A.PNG"]
    given = [str(output_name(Path(name), taken)) for name in wanted]
    assert given == ["a.png", "a-2.png", "a.webp.jpg", "a.webp-2.jpg", "b/a.png", "a-3.png", "A-4.PNG"]


# Files of results


def test_a_list_is_complete_after_every_extension(tmp_path):
    path, expected = tmp_path / "new" / "list.json", []
    (tmp_path / "new").mkdir()
    path.write_text("[1, 2, 3 and more than the first entries need")
    entries = JsonList(path)
    assert path.read_text().startswith("[1, 2, 3")  # what is there stays until there is something to write
    for batch in ([], [{"a": 1}], [], [{"b": "\u00e9"}, [2]], [3]):
        entries.extend(batch)
        expected += batch
        assert json.loads(path.read_text()) == expected
    entries.close()
    assert json.loads(path.read_text()) == expected


def test_a_list_of_nothing_is_written_at_the_end(tmp_path):
    JsonList(tmp_path / "folder" / "list.json").close()
    assert json.loads((tmp_path / "folder" / "list.json").read_text()) == []


@pytest.mark.parametrize("room", [0, 1, 7, 25])
def test_a_full_disk_keeps_the_entries_before(tmp_path, room):
    path = tmp_path / "list.json"
    entries = JsonList(path)
    entries.extend(["before"])
    file = entries._file
    assert file is not None

    class Full:
        """A disk with room for some more bytes of a long write."""

        seek, truncate, close = file.seek, file.truncate, file.close
        left = room

        def write(self, content):
            if len(content) <= 4:
                return file.write(content)
            written = file.write(content[: self.left])
            self.left -= written
            if written == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

    entries._file = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match=r"No space left on device: .*list\.json"):
        entries.extend(["a long entry that does not fit" * 3])
    assert json.loads(path.read_text()) == ["before"]
