"""Wrong values and unusual inputs in every command: a line that names the option, and exit code 2; nothing is begun."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dino.checkpoint import CheckpointError, load_model
from dino.commands import main
from dino.inference.sources import find_sources
from dino.training.train import train
from tests.dino.training.train_toys import quick_runs, toy_config, write_rectangles


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_runs(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "my data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "my run"
    train(toy_config(data, output, max_steps=1), quiet=True)
    return output


TRAIN = "train --data {data} --output {new} --preset dino_tiny"
PREDICT = "predict --checkpoint {run} {data}/valid"
EVALUATE = "evaluate --checkpoint {run} --data {data} --workers 0"
WRONG = {
    f"{TRAIN} --seed 99999999999999999999999": r"below 2\*\*63",
    f"{TRAIN} --output {{file}}": r"output: .*coco\.json cannot be created \(File exists\)\. Pass another --output",
    f"{TRAIN} --backbone-weights {{file}}": r"damaged, or not from torch\.save \(UnpicklingError: \w[^)]{9,}\)",
    f"{PREDICT} --output {{file}}": "output: .* cannot be created",
    f"{PREDICT} --output {{file}}/below": "output: .* cannot be created",
    f"{EVALUATE} --results {{data}}": "results: .* is a folder. Pass a file in it",
    f"{EVALUATE} --metrics {{file}}/m.json": "metrics: .* cannot be created",
    f"{EVALUATE} --workers -1": "workers must be at least 0, got -1",
    "visualize --checkpoint {run} {data}/valid/0.png --output {file}": "output: .* cannot be created",
    "data {data} --output {file}": "output: .* cannot be created",
    "data {data} --output {new} --short-sides 0": "short_sides must be at least 1 pixel",
    "demo --output {file}": "output: .* cannot be created",
    "demo --output {new} --threshold 5": "threshold must be a number in 0..1",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_value_is_named_before_anything_is_begun(
    command: str, data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"data": data, "run": run, "new": tmp_path / "new", "file": data / "valid/_annotations.coco.json"}
    before = places["file"].read_bytes()
    try:
        code = main(shlex.split(command.format(**{name: shlex.quote(str(path)) for name, path in places.items()})))
    except SystemExit as error:  # of the parser
        code = error.code
    text = capsys.readouterr().err
    assert code == 2 and "Traceback" not in text
    assert re.search(WRONG[command], " ".join(text.replace("│", " ").split())), text
    assert not places["new"].exists() and places["file"].read_bytes() == before


def test_commands_that_are_shown_can_be_pasted(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy_config(data, run, max_steps=1, resume=True))
    shown = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "python -m dino" in line]
    assert shown == [
        ["python", "-m", "dino", "predict", "--checkpoint", str(run), "IMAGES"],
        ["python", "-m", "dino", "evaluate", "--checkpoint", str(run), "--data", str(data)],
    ]


def test_hidden_files_of_a_folder_are_no_images(data: Path, tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".b.png"):  # macOS writes ._ files beside others
        (tmp_path / name).write_bytes((data / "valid/0.png").read_bytes())
    assert [source.name.name for source in find_sources([tmp_path])] == ["a.png"]
    assert [source.name.name for source in find_sources([tmp_path / ".b.png"])] == [".b.png"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_those_of_the_model(run: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    own = load_model(stored_as(run, tmp_path, dtype))[0].state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    for name, tensor in load_model(run)[0].state_dict().items():
        torch.testing.assert_close(own[name], tensor.to(dtype).float())


def test_weights_of_integers_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be floating-point numbers, got .*\(torch\.int8\)"):
        load_model(stored_as(run, tmp_path, torch.int8))


def stored_as(run: Path, folder: Path, dtype: torch.dtype) -> Path:
    file = run / "final/model.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, folder / file.name, header)
    return folder / file.name


class Closed(io.StringIO):
    """A pipe whose reader has gone, after some lines."""

    written = 0

    def write(self, text: str) -> int:
        self.written += 1
        if self.written > 5:
            raise BrokenPipeError(32, "Broken pipe")
        return len(text)


def test_a_closed_pipe_does_not_end_a_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Closed()
    monkeypatch.setattr("sys.stdout", closed)
    result = train(toy_config(data, tmp_path / "run", epochs=1))
    assert closed.written == 6 and result.final_model is not None and result.step == 4


def test_a_run_without_a_readable_validation_image_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_rectangles(tmp_path / "broken", valid=2)
    for image in (broken / "valid").glob("*.png"):
        image.write_bytes(image.read_bytes()[:80])
    result = train(toy_config(broken, tmp_path / "run", epochs=1, evaluate_every=1))
    assert "no validation image can be read. The first: " in result.failures[0] and result.final_model is not None
    assert "left out of validation: 2 images" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_under_another_default_dtype(data: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        assert train(toy_config(data, tmp_path / "run", max_steps=1), quiet=True).final_model is not None
    finally:
        torch.set_default_dtype(torch.float32)
