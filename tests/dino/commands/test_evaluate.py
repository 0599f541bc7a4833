"""`python -m dino evaluate`: its report, the thresholds for `predict`, and messages about bad models and images."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from dino import commands as command_line
from dino.checkpoint import save_model
from dino.checkpoint.thresholds import load_thresholds
from dino.data import Categories
from dino.inference.detector import Detector
from tests.dino.tools_toys import CATEGORIES, tiny_model, write_split

SIZE = {"image_size": {"short_side": 64, "long_side": 96}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A run, and data of two splits, in the current folder; the model finds the one box of each image but the last."""
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model(), tmp_path / "run" / "best", CATEGORIES, SIZE)
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / split, 4)
    file = tmp_path / "data/valid/_annotations.coco.json"
    document, detector = json.loads(file.read_text()), Detector.from_checkpoint("run", device="cpu")
    for k, annotation in enumerate(document["annotations"]):
        found = detector.predict(f"data/valid/{k}.png", 0).to_coco(annotation["image_id"])
        annotation["bbox"] = next(entry["bbox"] for entry in found if entry["category_id"] == 7)
    file.write_text(json.dumps(document))
    return tmp_path


def dino(name, *options):
    return command_line.main([name, "--checkpoint", "run", "--device", "cpu", *map(str, options)])


def evaluate(*options):
    return dino("evaluate", "--data", "data", "--workers", "0", *options)


def predict(*options):
    code = dino("predict", "data/valid", "--output", "found", "--no-pictures", *options)
    return code, json.loads(Path("found/predictions.json").read_text()) if code == 0 else []


def test_the_report_lies_in_the_run_and_the_thresholds_beside_the_weights(here, capsys):
    weights = (here / "run/best/model.safetensors").read_bytes()
    assert evaluate() == 0
    printed = capsys.readouterr()
    assert (
        f"wrote {os.path.join('run', 'evaluation', 'valid', 'report.html')}" in printed.out
        and "left out" not in printed.err
    )
    assert "best threshold for all classes: 0." in printed.out and "stored the best threshold" in printed.out
    assert (here / "run/evaluation/valid/report.json").exists()
    stored = json.loads((here / "run/best/thresholds.json").read_text())
    assert set(stored["by_category"]) == {"7"} and stored["source"]["split"] == "valid"
    assert stored["source"]["data"] == str(here / "data") and stored["source"]["boxes"] == 3
    assert (here / "run/best/model.safetensors").read_bytes() == weights


def test_predict_uses_the_best_thresholds(here, capsys):
    code, _ = predict("--threshold", "best")
    message = capsys.readouterr().err
    assert code == 2 and "Run evaluate first: python -m dino evaluate --checkpoint" in message
    assert not (here / "found").exists()
    assert evaluate() == 0
    stored = load_thresholds(here / "run/best/model.safetensors")
    assert stored is not None
    everything = predict("--threshold", "0")[1]
    expected = [entry for entry in everything if entry["score"] >= stored.of(entry["category_id"])]
    assert 0 < len(expected) < len(everything)
    assert predict("--threshold", "best") == (0, expected)


def test_the_detector_takes_best_and_refuses_other_words(here):
    detector = Detector.from_checkpoint("run", device="cpu")
    image = "data/valid/0.png"
    with pytest.raises(ValueError, match=r"none are stored with the model .*Run evaluate first"):
        detector.predict(image, threshold="best")
    with pytest.raises(ValueError, match="not from a file"):
        Detector(tiny_model(), CATEGORIES, device="cpu").predict(image, "best")
    assert evaluate() == 0
    found = detector.predict(image, threshold="best")
    assert len(found) and len(found) == len(detector.predict([image, image], "best")[1])
    for wrong in ("0.3", "high", -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r'threshold must be a number in 0\.\.1 or "best", got'):
            detector.predict(image, wrong)  # type: ignore[arg-type]


def test_only_the_valid_split_sets_thresholds(here, capsys):
    assert evaluate("--split", "train") == 0
    assert (here / "run/evaluation/train/report.html").exists() and "stored" not in capsys.readouterr().out
    assert not (here / "run/best/thresholds.json").exists()


def test_the_report_goes_where_it_is_sent_or_nowhere(here, capsys):
    assert evaluate("--no-report") == 0
    assert sorted(path.name for path in (here / "run").rglob("*")) == ["best", "model.json", "model.safetensors"]
    assert "report" not in capsys.readouterr().out
    assert evaluate("--report", "elsewhere") == 0
    assert (here / "elsewhere/report.html").exists() and not (here / "run/evaluation").exists()
    (here / "file").write_text("")
    assert evaluate("--report", "file/in/it") == 2
    message = capsys.readouterr().err
    assert "cannot be created" in message and "Pass --report FOLDER, or --no-report" in message


def test_classes_of_one_name_are_told_apart(here, capsys):
    twice = Categories(CATEGORIES.ids, ("car", "car", "bus"))
    save_model(tiny_model(), here / "run" / "best", twice, SIZE)
    file = here / "data/valid/_annotations.coco.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "categories": twice.to_json()}))
    assert evaluate("--metrics", "metrics.json") == 0
    assert {"car (id 3)", "car (id 7)", "bus"} == set(json.loads((here / "metrics.json").read_text())["per_class"])
    assert re.search(r"^  car \(id 7\) +\d", capsys.readouterr().out, re.MULTILINE)


def test_left_out_images_are_named_at_the_end_and_in_the_report(here, capsys):
    (here / "data/valid/1.png").write_text("broken")
    (here / "data/valid/2.png").unlink()
    assert evaluate("--skip-invalid") == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("left out: 2 of 4 images: ") and "2.png" in last and "1.png (image 101): cannot be" in last
    page = (here / "run/evaluation/valid/report.html").read_text()
    assert "Left out: 2 of 4 images" in page and "1.png (image 101): cannot be read" in page


def test_a_split_that_cannot_be_read_is_an_error_in_words(here, capsys):
    for file in (here / "data/valid").glob("*.png"):
        file.write_text("broken")
    assert evaluate("--skip-invalid") == 2
    assert "no image of the split can be read. The first: data/valid/0.png (image 100)" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_weights_that_are_not_finite_are_named(here, capsys, command, value):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.class_head.weight[0, 0] = value  # pyright: ignore[reportIndexIssue, reportArgumentType]
    save_model(model, here / "run" / "best", CATEGORIES, SIZE)
    assert (evaluate() if command == "evaluate" else predict("--threshold", "0")[0]) == 2
    message = capsys.readouterr().err.splitlines()[0]
    assert "decoder.class_head.weight (1 of 96 numbers)" in message and "earlier checkpoint" in message


def test_detections_that_are_not_finite_are_named_with_their_image(here, capsys, monkeypatch):
    model = tiny_model()
    with torch.no_grad():  # finite weights whose products are not
        model.decoder.class_head.weight.fill_(3e38)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        model.decoder.class_head.bias.fill_(-3e38)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    save_model(model, here / "run" / "best", CATEGORIES, SIZE)
    assert evaluate() == 2
    message = capsys.readouterr().err
    assert re.search(r"image 10\d: the model's detections are not finite .* The weights are finite", message)
    code, _ = predict("--threshold", "0")
    message = capsys.readouterr().err
    assert code == 1 and "4 of 4 files could not be read" in message
    assert re.search(r"left out: data/valid/0.png: .* detections are not finite", message)


def test_a_terminal_without_the_letters_of_a_name_shows_their_numbers(here, monkeypatch):
    names = Categories(CATEGORIES.ids, ("Löwe", "猫", "ёж"))
    save_model(tiny_model(), here / "run" / "best", names, SIZE)
    file = here / "data/valid/_annotations.coco.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "categories": names.to_json()}))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert evaluate() == 0
    terminal.seek(0)
    assert r"\u732b" in terminal.read()
