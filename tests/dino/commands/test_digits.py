"""The demo's data are valid, reproducible, complete or absent, and honest about what is held out."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")

from dino.commands.demo import digit_images, sheet_images
from dino.commands.demo.digits import DIGIT_NAMES, DigitsConfig, make_digits_dataset
from dino.data import build_datasets

CONFIG = DigitsConfig(train_images=12, valid_images=6)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits_dataset(tmp_path_factory.mktemp("data") / "digits", CONFIG)


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_digits_pass_the_validation_of_any_data_set(digits: Path) -> None:
    datasets = build_datasets(digits)
    assert datasets.valid is not None
    assert (len(datasets.train), len(datasets.valid)) == (12, 6)
    assert datasets.categories.ids == tuple(range(1, 11))
    assert datasets.categories.names == DIGIT_NAMES
    assert datasets.train.index.sizes_wh.tolist() == [[160, 160]] * 12


def test_digits_lie_inside_and_apart(digits: Path) -> None:
    document = json.loads((digits / "train" / "_annotations.coco.json").read_text())
    boxes: dict[int, list[list[int]]] = {}
    for annotation in document["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    assert set(boxes) == {image["id"] for image in document["images"]}
    for on_one_image in boxes.values():
        assert 1 <= len(on_one_image) <= 5
        coverage = np.zeros((160, 160), int)
        for x, y, width, height in on_one_image:
            assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 160
            assert 24 <= max(width, height) <= 48
            coverage[y : y + height, x : x + width] += 1
        assert coverage.max() == 1


@pytest.mark.parametrize("seed", range(25))
def test_digits_stay_apart_where_there_is_hardly_room(seed: int) -> None:
    sources = digit_images.load_sources()["train"]
    picture, digits = digit_images.compose(
        random.Random(seed), sources, image_size=72, digit_size=(24, 36), max_digits=9
    )
    assert picture.size == (72, 72) and 1 <= len(digits) <= 9
    coverage = np.zeros((72, 72), int)
    for _, (x, y, width, height) in digits:
        coverage[y : y + height, x : x + width] += 1
    assert coverage.max() == 1


def test_digits_stand_out_from_what_is_around_them(digits: Path) -> None:
    document = json.loads((digits / "train" / "_annotations.coco.json").read_text())
    files = {image["id"]: image["file_name"] for image in document["images"]}
    for annotation in document["annotations"]:
        grey = np.asarray(Image.open(digits / "train" / files[annotation["image_id"]]).convert("L")).astype(int)
        x, y, width, height = annotation["bbox"]
        inside = grey[y : y + height, x : x + width]
        # Ink and ground differ by 110 to 160 levels before blending.
        assert np.percentile(inside, 95) - np.percentile(inside, 5) > 60
        # The strokes reach all four sides of the box: each holds a pixel of more than half the contrast.
        ground = np.median(grey[max(0, y - 3) : y + height + 3, max(0, x - 3) : x + width + 3])
        assert np.abs(inside - ground).max() > 60


def test_the_same_configuration_makes_the_same_files(digits: Path, tmp_path: Path) -> None:
    again = make_digits_dataset(tmp_path / "again", CONFIG)
    assert fingerprint(again) == fingerprint(digits)


def test_a_larger_set_begins_with_the_smaller_one_and_another_seed_differs(digits: Path, tmp_path: Path) -> None:
    more = fingerprint(make_digits_dataset(tmp_path / "more", CONFIG, train_images=13))
    other = fingerprint(make_digits_dataset(tmp_path / "other", CONFIG, seed=1))
    pictures = {name: digest for name, digest in fingerprint(digits).items() if name.endswith(".jpg")}
    assert {name: more[name] for name in pictures} == pictures
    assert not set(pictures.values()) & set(other.values())


def test_a_complete_directory_is_reused(tmp_path: Path) -> None:
    folder = make_digits_dataset(tmp_path / "d", train_images=2, valid_images=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_digits_dataset(tmp_path / "d", DigitsConfig(train_images=2, valid_images=1)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_other_contents_are_never_overwritten(tmp_path: Path) -> None:
    make_digits_dataset(tmp_path / "d", train_images=2, valid_images=1)
    with pytest.raises(FileExistsError, match="holds a digits data set of another configuration"):
        make_digits_dataset(tmp_path / "d", train_images=3, valid_images=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(FileExistsError, match="holds other files"):
        make_digits_dataset(tmp_path / "mine", train_images=2, valid_images=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not delete"


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    make_digits_dataset(tmp_path / "d", train_images=2, valid_images=1)
    assert (tmp_path / "d" / "valid" / "_annotations.coco.json").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Image.Image.save
    calls = []

    def failing_save(self: Image.Image, *arguments: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left on device")
        saved(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Image.Image, "save", failing_save)
    with pytest.raises(OSError, match="no space left"):
        make_digits_dataset(tmp_path / "d", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_validation_uses_other_digits_and_another_part_of_the_photographs() -> None:
    sources = digit_images.load_sources()
    train, valid = sources["train"], sources["valid"]
    assert (len(train.values), len(valid.values)) == (1437, 360)
    assert not {digit.tobytes() for digit in train.digits} & {digit.tobytes() for digit in valid.digits}
    assert set(train.values.tolist()) == set(valid.values.tolist()) == set(range(10))
    columns = [np.asarray(photo) for photo in (*train.photographs, *valid.photographs)]
    china, left, right = columns
    assert left.shape == right.shape == (427, 320, 3) and china.shape == (427, 640, 3)
    assert not np.array_equal(left, right)


def made(seed: int, **changes: object) -> list[sheet_images.SheetImage]:
    options = {"image_size": 160, "digit_size": (24, 48), "max_digits": 5} | changes
    return sheet_images.sheet_images(8, seed, **options)  # type: ignore[arg-type]


def test_the_images_of_the_sheet_are_chosen_by_the_seed() -> None:
    first, again, other = ([one.image.tobytes() for one in made(seed)] for seed in (0, 0, 1))
    assert first == again and not set(first) & set(other) and len(set(first)) == 8
    assert all(3 <= len(one.digits) <= 5 and one.image.size == (160, 160) for one in made(2))
    assert [len(one.digits) for one in made(0, max_digits=1)] == [1] * 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("portrait", [True, False])
def test_pieces_of_photographs_hardly_overlap(seed: int, portrait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    if not portrait:
        monkeypatch.setitem(sys.modules, "matplotlib.cbook", None)
    pieces: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    piece = sheet_images._piece

    def noted(rng: random.Random, photograph: Image.Image, taken: list[tuple[int, int, int, int]]):
        pieces[photograph.size] = taken
        return piece(rng, photograph, taken)

    monkeypatch.setattr(sheet_images, "_piece", noted)
    made(seed)
    expected = {(320, 427): 3, (512, 600): 6} if portrait else {(320, 427): 8}  # with the face
    assert {size: len(boxes) for size, boxes in pieces.items()} == expected
    for boxes in pieces.values() if portrait else ():
        assert max(sheet_images._overlap(box, boxes[:k]) for k, box in enumerate(boxes)) < 0.5


def test_a_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'needs scikit-learn\. .*pip install "dino-kernels\[demo\]"'):
        make_digits_dataset(tmp_path / "d", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_images": 0}, "train_images must be at least 1, got 0"),
        ({"max_digits": 0}, "max_digits must be at least 1, got 0"),
        ({"max_digits": 2, "min_digits": 3}, "max_digits must be at least min_digits = 3, got 2"),
        ({"overlap": 1.0}, "overlap must be at least 0 and below 1, got 1.0"),
        ({"digit_size": (24, 90)}, "digit_size must be"),
        ({"digit_size": (50, 40)}, "digit_size must be"),
        ({"digit_size": (2, 40)}, "digit_size must be"),
    ],
)
def test_impossible_configurations_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"DigitsConfig: {message}"):
        DigitsConfig(**fields)
