"""Which files are looked at, under which ids and names, and what becomes of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.inference.files import InputFile, coco_ids, find_files, output_name, predict_files
from tests.dino.tools_toys import noise_picture, tiny_detector, write_split


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


def names(files):
    return [str(file.name) for file in files]


def test_a_folder_means_its_images_in_order(album):
    assert names(find_files([album])) == ["a.JPG", "b.png"]
    assert names(find_files([album], recursive=True)) == ["a.JPG", "b.png", "deep/er/c.webp"]


def test_patterns_and_files_are_found(album):
    assert names(find_files([f"{album}/*.png", album / "notes.txt"])) == ["b.png", "notes.txt"]
    assert names(find_files([f"{album}/**/*.webp"])) == ["c.webp"]


def test_a_file_named_twice_is_taken_once(album):
    assert names(find_files([album / "b.png", album, str(album / "deep" / ".." / "b.png")])) == ["b.png", "a.JPG"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    noise_picture().save(tmp_path / "a[1].png")
    assert names(find_files([tmp_path / "a[1].png"])) == ["a[1].png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [("missing.jpg", "no such file or folder"), ("*.bmp", "no file matches"), ("deep", "no images.*--recursive")],
)
def test_an_input_without_images_is_named(album, given, message):
    with pytest.raises(FileNotFoundError, match=f"{Path(given).name.replace('*', '.*')}: .*{message}"):
        find_files([album / "a.JPG", album / given])


def test_broken_files_are_noted_and_the_rest_is_done(detector, album):
    files = find_files([album], recursive=True) + [InputFile(album / "notes.txt", Path("notes.txt"))]
    *_, done = predict_files(detector, files, threshold=0.0, top_k=4, pictures=album / "out")
    assert len(done.failures) == 1 and "notes.txt" in done.failures[0]
    assert [image["id"] for image in done.images] == [1, 2, 3]
    assert done.images[2] == {"id": 3, "file_name": "deep/er/c.webp", "width": 80, "height": 60}
    assert [result["image_id"] for result in done.results] == [1] * 4 + [2] * 4 + [3] * 4
    written = sorted(str(path.relative_to(album / "out")) for path in (album / "out").rglob("*") if path.is_file())
    assert written == ["a.JPG", "b.png", "deep/er/c.webp.jpg"]
    drawn = Image.open(album / "out" / "b.png")
    assert drawn.size == (80, 60) and (np.asarray(drawn) != np.asarray(Image.open(album / "b.png"))).any()


def test_results_are_those_of_the_detector(detector, album):
    *_, done = predict_files(detector, find_files([album / "b.png"]), threshold=0.0, ids={album / "b.png": 77})
    assert done.results == detector.predict(album / "b.png", 0.0).to_coco(77)
    assert not (album / "out").exists()


def test_progress_comes_after_every_file(detector, album):
    steps = predict_files(detector, find_files([album], recursive=True), threshold=1.0)
    assert [len(step.images) for step in steps] == [1, 2, 3]


def test_ids_are_those_of_the_coco_file(tmp_path):
    annotations = write_split(tmp_path / "valid")
    files = find_files([tmp_path / "valid"])
    assert coco_ids(annotations, files) == {tmp_path / "valid" / f"{i}.png": 100 + i for i in range(3)}


def test_the_path_below_the_folder_decides_between_equal_names(tmp_path):
    images = [{"id": 1, "file_name": "x/a.png"}, {"id": 2, "file_name": "y/a.png"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images}))
    inside = InputFile(tmp_path / "y" / "a.png", Path("y/a.png"))
    assert coco_ids(tmp_path / "coco.json", [inside]) == {inside.path: 2}
    with pytest.raises(ValueError, match=r"has 2 images called a\.png"):
        coco_ids(tmp_path / "coco.json", [InputFile(tmp_path / "y" / "a.png", Path("a.png"))])
    with pytest.raises(ValueError, match=r"does not have z\.png"):
        coco_ids(tmp_path / "coco.json", [InputFile(tmp_path / "z.png", Path("z.png"))])


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"images": [{"id": 1}]}', "[]"])
def test_what_is_not_a_coco_file_is_named(tmp_path, content):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(ValueError, match=r"coco\.json: not a COCO file"):
        coco_ids(tmp_path / "coco.json", [])


def test_output_names_do_not_collide():
    taken: set[Path] = set()
    wanted = ["a.png", "a.png", "a.webp", "a.webp.jpg", "b/a.png", "a.png"]
    given = [str(output_name(Path(name), taken)) for name in wanted]
    assert given == ["a.png", "a-2.png", "a.webp.jpg", "a.webp-2.jpg", "b/a.png", "a-3.png"]
