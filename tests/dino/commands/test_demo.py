"""The demo from nothing to an image, in small."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import dino
from dino.commands import demo
from dino.commands.demo import main

SMALL = ("--train-images", "16", "--valid-images", "9", "--epochs", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo")
    assert main([*SMALL, "--output", str(output), "--threshold", "0"]) == 0
    return output


def test_the_demo_leaves_data_a_model_and_an_image(finished: Path) -> None:
    assert len(list((finished / "data/train").glob("*.jpg"))) == 16
    detector = dino.Detector.from_checkpoint(finished / "run")
    assert detector.categories.names[0] == "zero" and detector.transform.short_side == 160
    with Image.open(finished / "detections.png") as picture:
        assert picture.size == (4 * 328 + 8, 40 + 2 * 328)  # eight images, four to a row, under a line


def test_the_demo_prints_precision_before_and_after(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--output", str(finished), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "Before training" in said and "AP50" in said.partition("After training")[2]


def test_a_stopped_demo_gives_one_command_that_goes_on_to_its_image(finished, capsys, monkeypatch):
    def stopped(config, *, resume_command):
        print(resume_command)
        return SimpleNamespace(stopped_by="SIGINT", final_model=None, exit_code=130)

    monkeypatch.setattr(demo, "train", stopped)
    assert main([*SMALL, "--output", str(finished), "--resume"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "--resume" in line] == [
        f"python -m dino demo --output {finished} --epochs 1 --train-images 16 --valid-images 9 --resume"
    ]
