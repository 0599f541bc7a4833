"""`python -m dino data`: what it counts, which problems it shows, what it draws and converts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino import commands
from dino.data import find_splits
from tests.dino.data.data_examples import document, write_split
from tests.dino.data.format_examples import FORMATS, boxes, expected, write


def run(*arguments: object) -> int:
    sizes = ("--short-sides", 64, "--long-side", 96, "--no-crop")
    return commands.main(["data", *map(str, (*arguments, *sizes))])


def test_counts_of_each_class_and_split_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    FORMATS["yolo yaml"][1](tmp_path / "data")
    assert run(tmp_path / "data", "--output", tmp_path / "out") == 0
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert "YOLO txt (data.yaml)\n train valid\nimages 4 2\n without boxes 1 0\nboxes 5 3\n" in text
    for line in (" cat 2 1\n", " dog 1 1\n", " traffic light 2 1\n", "images: 96x72 pixels", "no problems"):
        assert line in text
    assert "60.0 % small (below 32x32), 40.0 % medium, 0.0 % large" in text


def test_the_sheets_show_images_with_their_boxes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    FORMATS["coco images"][1](tmp_path / "data")
    run(tmp_path / "data", "--output", tmp_path / "out", "--pictures", 2)
    sheets = {name: Image.open(tmp_path / "out" / f"{name}.png") for name in ("data_sheet", "augmented")}
    assert sheets["data_sheet"].width == 2 * 408 + 8 and sheets["augmented"].width == 4 * 408 + 8
    for sheet in sheets.values():  # colours of the classes' boxes
        pixels = np.asarray(sheet).reshape(-1, 3)
        assert (pixels == (86, 180, 233)).all(1).sum() > 100 and (pixels == (0, 158, 115)).all(1).sum() > 100


@pytest.mark.parametrize("name", ["yolo path", "voc lists", "csv sizes", "coco 2017", "coco shards"])
@pytest.mark.parametrize("copy", [False, True])
def test_every_format_converts_to_coco(name: str, copy: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    FORMATS[name][1](tmp_path / "data")
    arguments = (tmp_path / "data", "--to", "coco", "--output", tmp_path / "out", *(["--copy"] if copy else []))
    assert run(*arguments) == 0
    layout = find_splits(tmp_path / "out")
    assert layout.format == "COCO JSON"
    for split in ("train", "valid"):
        index = layout.require(split).load()
        assert boxes(index) == expected(split)
        assert index.categories.names == layout.require("train").load().categories.names
        linked = not copy and "shards" not in name
        assert index.image_path(0).is_symlink() == linked and index.image_path(0).is_file()
    assert run(*arguments) == 2
    assert "train exists. Pass another --output" in capsys.readouterr().err


def test_every_kind_of_problem_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [3, 9, -2, 5]
    content["annotations"][3]["bbox"] = [3, 9, -2, 5]
    content["categories"].append({"id": 5, "name": "bus"})
    write_split(tmp_path / "train", content)
    (tmp_path / "train" / "dog.jpg").write_bytes(b"garbage")
    file = write_split(
        tmp_path / "valid", {**document(), "categories": [{"id": 17, "name": "lynx"}, {"id": 18, "name": "dog"}]}
    )
    write(tmp_path / "test" / file.name, "{")
    assert run(tmp_path, "--output", tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert "train/_annotations.coco.json: annotation 4711 (image 12, cat.jpg): bbox [3, 9, -2, 5]" in text
    assert "Skipped 2 of 4 annotations." in text
    assert "dog.jpg (image 3): cannot be read as an image" in text and "1 of 3 images cannot be used." in text
    assert "category 17 is 'cat' in train/_annotations.coco.json but 'lynx' in valid" in text
    assert "test: test/_annotations.coco.json: is not valid JSON" in text
    assert "no boxes in train: bus, cat" in text
    assert (tmp_path / "out" / "data_sheet.png").exists()


def test_many_classes_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = document()
    content["categories"] += [{"id": 100 + k, "name": f"kind {k}"} for k in range(78)]
    write_split(tmp_path / "train", content)
    assert run(tmp_path, "--output", tmp_path / "out", "--no-decode") == 0
    text = capsys.readouterr().out
    assert "(60 more classes)" in text and "kind 77" in text and "and 68 more" in text


def test_data_without_boxes_are_described(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_split(tmp_path / "train", {**document(), "annotations": []})
    assert run(tmp_path, "--output", tmp_path / "out") == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "x"])
def test_unknown_data_are_an_error_of_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        write(tmp_path / "train" / "_annotations.coco.json", content)
    assert run(tmp_path, "--output", tmp_path / "out") == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2 and printed[0].startswith("error: ")
    assert not (tmp_path / "out").exists()
