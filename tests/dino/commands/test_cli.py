"""`python -m dino`: what it prints, which exit codes it has, and a whole session on small data."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from dino import commands as command_line
from dino.checkpoint import save_model
from dino.commands import exit_codes
from dino.data import DatasetError
from tests.dino.tools_toys import CATEGORIES, noise_picture, tiny_model, write_split

WITH_OPTIONS = ("data", "evaluate", "predict", "visualize", "benchmark", "summary")


def main(*arguments):
    """Exit code of a command; tyro ends `--help` and wrong options by SystemExit."""
    try:
        return command_line.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture
def plain(monkeypatch):
    """A terminal of 80 columns, without tracebacks."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv(exit_codes.TRACEBACK_VARIABLE, raising=False)


@pytest.fixture
def run_folder(tmp_path):
    """A run with a best model and small images, and data of two splits."""
    save_model(tiny_model(), tmp_path / "run" / "best", CATEGORIES, {"image_size": {"short_side": 64, "long_side": 96}})
    write_split(tmp_path / "data" / "train")
    write_split(tmp_path / "data" / "valid")
    return tmp_path


# Help


def test_help_names_every_command_and_teaches_a_session(plain, capsys):
    assert main("--help") == 0
    text = capsys.readouterr().out
    for name, (_, _, what) in command_line.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", text, re.MULTILINE), name
    for needed in ("python -m dino train --data", "--resume", "runs/mine/best", "COMMAND --help", "--traceback"):
        assert needed in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_command_prints_the_help_and_is_an_error(capsys):
    assert main() == 2
    assert "usage: python -m dino COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_in_the_help_exists(name):
    module, function, _ = command_line.COMMANDS[name]
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_help_imports_neither_torch_nor_tyro(run_python):
    program = (
        "import sys, runpy; sys.argv = ['dino', '--help']\n"
        "try: runpy.run_module('dino', run_name='__main__')\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print('imported', *sorted(roots & {'torch', 'tyro', 'numpy', 'PIL'}))"
    )
    assert run_python(program).splitlines()[-2:] == ["exit 0", "imported"]


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_help_of_a_command_fits_the_terminal(plain, capsys, name):
    assert main(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: python -m dino {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "None" not in text


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_every_option_of_a_command_is_explained(name):
    module = __import__(f"dino.commands.{name}", fromlist=["_"])
    options = getattr(module, f"{name.capitalize()}Options")
    from tyro._docstrings import get_field_docstring

    for field in dataclasses.fields(options):
        assert get_field_docstring(options, field.name, ()), field.name


# Errors


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert main("evalute") == 2
    assert "no command 'evalute'. Perhaps you meant 'evaluate'." in capsys.readouterr().err


def test_a_wrong_option_gets_a_suggestion(plain, capsys):
    assert main("evaluate", "--checkpoint", "a", "--data", "b", "--splt", "valid") == 2
    assert re.search(r"Perhaps you meant.*--split", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("summary", "--preset", "dino_4scale_r5"), "error: preset must be one of"),
        (("predict", "--checkpoint", "x"), "error: predict: no INPUT"),
        (("predict", "--checkpoint", "x", "missing.jpg"), "error: missing.jpg: no such file or folder"),
        (("predict", "--checkpoint", "missing", "{picture}"), "error: checkpoint missing: no such file or folder"),
        (("evaluate", "--checkpoint", "x", "--data", "missing"), "error: missing: no such file or folder"),
        (("visualize", "--checkpoint", "x", "missing.jpg"), "error: missing.jpg: the file does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_wrong_input_is_one_line_and_code_2(plain, capsys, tmp_path, arguments, message):
    noise_picture().save(tmp_path / "picture.png")
    assert main(*(argument.format(picture=tmp_path / "picture.png") for argument in arguments)) == 2
    text = capsys.readouterr().err
    assert text.startswith(message) and "Traceback" not in text and "--traceback shows" in text


def test_a_traceback_is_shown_on_request(plain, capsys, monkeypatch):
    assert main("summary", "--preset", "no", "--traceback") == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv(exit_codes.TRACEBACK_VARIABLE, "1")
    assert main("summary", "--preset", "no") == 2
    assert "Traceback" in capsys.readouterr().err


def raising(error):
    def command():
        raise error

    return command


def test_a_bug_keeps_its_traceback(plain):
    with pytest.raises(ZeroDivisionError):
        exit_codes.run(lambda: 1 // 0)
    # A ValueError from somewhere else is no statement about the input.
    with pytest.raises(ValueError, match="invalid literal"):
        exit_codes.run(lambda: int("x"))
    with pytest.raises(RuntimeError):
        exit_codes.run(lambda: torch.zeros(2) @ torch.zeros(3))


def test_errors_of_this_package_and_of_files_are_the_users(plain, tmp_path, capsys):
    assert exit_codes.run(raising(DatasetError("bad data"))) == 2
    assert exit_codes.run(lambda: (tmp_path / "missing").read_text()) == 2
    assert "missing" in capsys.readouterr().err


def test_out_of_memory_says_what_helps(plain, capsys):
    assert exit_codes.run(raising(torch.OutOfMemoryError("tried to allocate 20 GiB"))) == 1
    text = capsys.readouterr().err
    assert "20 GiB" in text and "--dtype bfloat16" in text and "Traceback" not in text


def test_ctrl_c_ends_with_130_and_no_traceback(plain, capsys):
    assert exit_codes.run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_reader_that_left_is_no_error(run_python):
    program = (
        "import os, sys; from dino.commands import exit_codes\n"
        "def command():\n"
        "    read, write = os.pipe(); os.close(read)\n"
        "    os.dup2(write, 1); print('x' * 100000, flush=True)\n"
        "sys.exit(exit_codes.run(command))"
    )
    assert run_python(program) == ""


def test_the_code_of_a_command_is_the_exit_code():
    assert exit_codes.run(lambda: 1) == 1
    assert exit_codes.run(lambda: None) == 0


# A session


def test_summary_prints_a_table(plain, capsys):
    assert main("summary", "--preset", "dino_tiny", "--size", "64", "96") == 0
    text = capsys.readouterr().out
    assert "dino_tiny, one image of 64x96" in text and "1.55M" in text
    assert max(map(len, text.splitlines())) <= 80


def test_evaluate_prints_and_writes(plain, capsys, run_folder):
    files = ["--results", run_folder / "out" / "results.json", "--metrics", run_folder / "metrics.json"]
    arguments = ["--checkpoint", run_folder / "run", "--data", run_folder / "data", "--workers", 0, "--device", "cpu"]
    assert main("evaluate", *arguments, *files) == 0
    text = capsys.readouterr().out
    assert "3 images, 2 boxes" in text and f"wrote {run_folder / 'metrics.json'}" in text
    results = json.loads((run_folder / "out" / "results.json").read_text())
    assert {result["image_id"] for result in results} == {100, 101, 102}
    assert {result["category_id"] for result in results} <= set(CATEGORIES.ids)
    assert json.loads((run_folder / "metrics.json").read_text())["num_images"] == 3


def test_evaluate_stops_at_an_unreadable_image_unless_told(plain, capsys, run_folder):
    (run_folder / "data" / "valid" / "1.png").write_text("broken")
    arguments = ["--checkpoint", run_folder / "run", "--data", run_folder / "data", "--workers", 0, "--device", "cpu"]
    assert main("evaluate", *arguments) == 2
    assert "1.png (image 101): cannot be read" in capsys.readouterr().err
    assert main("evaluate", *arguments, "--skip-invalid") == 0
    printed = capsys.readouterr()
    assert "2 images, 1 box;" in printed.out and "left out: " in printed.err


def test_predict_writes_results_that_can_be_scored(plain, capsys, run_folder):
    valid, found = run_folder / "data" / "valid", run_folder / "found"
    arguments = ["--checkpoint", run_folder / "run", valid, "--output", found, "--threshold", 0, "--device", "cpu"]
    assert main("predict", *arguments, "--annotations", valid / "_annotations.coco.json") == 0
    assert "180 detections in 3 images" in capsys.readouterr().out
    results = json.loads((found / "predictions.json").read_text())
    assert {result["image_id"] for result in results} == {100, 101, 102}
    from dino.evaluation.coco_metrics import score

    assert score(results, [100, 101, 102], valid / "_annotations.coco.json").num_boxes == 2
    assert sorted(path.name for path in (found / "pictures").iterdir()) == ["0.png", "1.png", "2.png"]


def test_predict_names_broken_files_and_ends_with_1(plain, capsys, run_folder):
    valid, found = run_folder / "data" / "valid", run_folder / "found"
    (valid / "1.png").write_text("broken")
    arguments = ["--checkpoint", run_folder / "run", valid, "--output", found, "--no-pictures", "--device", "cpu"]
    assert main("predict", *arguments) == 1
    text = capsys.readouterr().err
    assert "1.png: cannot be read" in text and "1 of 3 files could not be read" in text
    assert [image["id"] for image in json.loads((found / "images.json").read_text())] == [1, 3]
    assert not (found / "pictures").exists()


def test_visualize_writes_an_image_of_each_kind(plain, capsys, run_folder):
    valid, out = run_folder / "data" / "valid", run_folder / "out"
    arguments = ["--checkpoint", run_folder / "run", valid / "0.png", "--output", out, "--device", "cpu"]
    assert main("visualize", *arguments) == 0
    assert "denoising, attention_mask, look_forward and matching are not drawn" in capsys.readouterr().err
    kinds = {"refinement", "sampling", "query_selection", "encoder_sampling"}
    assert {path.name for path in out.iterdir()} == {f"0_{kind}.png" for kind in kinds}
    assert main("visualize", *arguments, "--annotations", valid / "_annotations.coco.json", "--layer", 0) == 0
    assert "matching is not drawn" in capsys.readouterr().err  # this run kept one checkpoint
    kinds |= {"denoising", "attention_mask", "look_forward"}
    assert {path.name for path in out.iterdir()} == {f"0_{kind}.png" for kind in kinds}
    compared = ["--compare", run_folder / "run", run_folder / "run" / "best"]
    assert main("visualize", *arguments, "--annotations", valid / "_annotations.coco.json", *compared) == 0
    assert (out / "0_matching.png").exists()


def test_visualize_compares_the_checkpoints_of_a_run(tmp_path):
    from dino.commands.visualize import kept_checkpoints, path_name

    for step in (1000, 200):
        (tmp_path / f"checkpoints/step-{step:08}").mkdir(parents=True)
        (tmp_path / f"checkpoints/step-{step:08}/model.safetensors").touch()
    (tmp_path / "checkpoints/step-00000300").mkdir()
    found = kept_checkpoints(tmp_path)
    assert [path_name(path) for path in found] == ["step 200", "step 1,000"]
    assert path_name(tmp_path / "best") == f"{tmp_path.name}/best" and kept_checkpoints(tmp_path / "none") == ()


def test_visualize_writes_all_or_nothing(plain, capsys, run_folder):
    valid, out = run_folder / "data" / "valid", run_folder / "out"
    arguments = ["--checkpoint", run_folder / "run", valid / "0.png", "--output", out, "--device", "cpu"]
    assert main("visualize", *arguments, "--query", 9999) == 2
    assert "query must be in" in capsys.readouterr().err
    assert not out.exists()


def test_visualize_needs_boxes_to_show_denoising(plain, capsys, run_folder):
    valid = run_folder / "data" / "valid"
    arguments = ["--checkpoint", run_folder / "run", valid / "2.png", "--output", run_folder / "out", "--device", "cpu"]
    assert main("visualize", *arguments, "--annotations", valid / "_annotations.coco.json") == 2
    assert "has no boxes for 2.png" in capsys.readouterr().err


def test_threads_that_wait_do_not_spin(tmp_path):
    nowhere = str(tmp_path / "none")
    command = [sys.executable, "-m", "dino", "evaluate", "--data", nowhere, "--checkpoint", nowhere]
    environment = os.environ | {"OMP_DISPLAY_ENV": "TRUE"}
    environment.pop("OMP_WAIT_POLICY", None)
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stderr
    if "OMP_WAIT_POLICY" not in shown:
        pytest.skip("this OpenMP does not show its settings")
    assert re.search(r"OMP_WAIT_POLICY *= *'PASSIVE'", shown), "set too late, after torch was imported"


def test_a_setting_of_threads_by_the_user_is_kept(monkeypatch, plain):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert main("summary", "--help") == 0
    assert os.environ["OMP_WAIT_POLICY"] == "active"
