"""The parts around the training steps: options, messages and bars, log, curves, results."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.dino.training.train_toys import (
    NAMES,
    TINY,
    assert_same_weights,
    quick_runs,
    toy_config,
    weights,
    write_rectangles,
)

# dino.commands.train needs it.
pytest.importorskip("tyro")
import dino.training
import dino.training.evaluation
from dino.checkpoint import load_model
from dino.commands.train import parse
from dino.common.console import Console
from dino.evaluation.coco_metrics import METRIC_NAMES, CocoMetrics
from dino.model.config import PRESETS
from dino.training.curves import draw_curves
from dino.training.log import COLUMNS, Log, read_log
from dino.training.report import epochs
from dino.training.run_folder import RunFolder
from dino.training.step import BRANCH_PARTS, LOSS_PARTS
from dino.training.train import TrainConfig, train

TRAINING = Path(dino.training.__file__).parent


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rectangles(tmp_path / "rectangles")


def test_every_option_is_read_somewhere():
    sources = "".join(path.read_text() for path in TRAINING.glob("*.py"))
    unread = [
        field.name for field in dataclasses.fields(TrainConfig) if not re.search(rf"config\.{field.name}\b", sources)
    ]
    # Through the properties `drops` and `padding`.
    assert unread == ["lr_drop_epochs", "pad_to"] and "config.drops" in sources and "config.padding" in sources


def test_a_configuration_survives_json():
    config = TrainConfig(
        data=Path("d"), model=PRESETS["dino_5scale_r50"], lr_drop_epochs=(3, 4), finetune=Path("x"), clip=math.inf
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig(data="d", short_sides=[64]) == TrainConfig(data=Path("d"), short_sides=(64,))  # pyright: ignore
    with pytest.raises(ValueError, match=r"no fields \['learning_rate'\]"):
        TrainConfig.from_dict({**config.to_dict(), "learning_rate": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"amp": "fp8"}, r"amp must be one of \('off', 'bf16', 'fp16'\), got 'fp8'"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"short_sides": ()}, "short_sides must be one or more"),
        ({"lr_drop_epochs": (0,)}, "counted from 1"),
        ({"resume": True, "overwrite": True}, "left out with overwrite"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(data=Path("d"), **changes)


def test_published_schedules_are_the_defaults():
    drops = {epochs: TrainConfig(data=Path("d"), epochs=epochs).drops for epochs in (1, 12, 24, 36, 50)}
    assert drops == {1: (1,), 12: (11,), 24: (20,), 36: (30,), 50: (42,)}
    assert TrainConfig(data=Path("d"), lr_drop_epochs=()).drops == ()


def test_a_preset_chooses_the_defaults_of_the_model_options():
    config = parse(["--data", "d", "--preset", "dino_tiny", "--model.num-queries", "7", "--lr-drop-epochs", "3", "5"])
    assert config.model == dataclasses.replace(PRESETS["dino_tiny"], num_queries=7)
    assert type(config.model) is type(PRESETS["dino_tiny"]) and type(config) is TrainConfig
    assert config.lr_drop_epochs == (3, 5) and config.data == Path("d")
    assert parse(["--data", "d", "--preset=dino_5scale_r50"]).model == PRESETS["dino_5scale_r50"]
    assert parse(["--data", "d"]) == TrainConfig(data=Path("d"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "d", "--epoch", "3"], "--epochs INT"),
        (["--data", "d", "--model.num-classes", "3"], "Unrecognized options: --model.num-classes"),
        (["--data", "d", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--data", "d", "--preset", "dino_tony"], "dino_tiny"),
        ([], "--data"),
    ],
)
def test_wrong_options_end_with_a_hint(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--preset", "dino_tiny", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "--model.num-queries INT" in text and "(default: 60)" in text, "not the preset's default"
    assert "num-classes" not in text and "Passes over the training images." in text


def test_resume_takes_the_options_of_the_run(tmp_path):
    saved = TrainConfig(data=Path("d"), output=tmp_path, model=TINY, lr=3e-4, crop=False)
    (tmp_path / "config.json").write_text(json.dumps(saved.to_dict()))
    config = parse(["--output", str(tmp_path), "--resume", "--epochs", "20"])
    expected = dataclasses.replace(saved, resume=True, epochs=20, model=dataclasses.replace(TINY, num_classes=91))
    assert dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=91)) == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after it received `text`."""
    lines, row = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[A)", text):
        row += {"\n": 1, "\x1b[A": -1}.get(part, 0)
        lines += [""] * (row + 1 - len(lines))
        if part not in ("\r", "\n", "\x1b[A"):
            lines[row] = part + lines[row][len(part) :]
    return [line.rstrip() for line in lines if line.strip()]


def test_lines_appear_above_the_bars_of_a_terminal():
    stream = Terminal()
    console = Console(stream)
    with console.bar((), "training", total=4, initial=1) as bar:
        console.log("a line")
        bar.set_postfix_str("loss 1.00")
        for _ in console.bar(range(3), "evaluate", "images", total=3, leave=False):
            console.log("another line")
        bar.update(3)
        assert "evaluate:   0%" in stream.getvalue()
    *lines, last = screen(stream.getvalue())
    assert lines == ["a line", *["another line"] * 3]
    assert last.startswith("training: 100%|") and "| 4/4 [" in last and last.endswith(", loss 1.00]")


def test_a_file_has_a_line_every_interval_and_no_control_characters(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for _ in Console(stream).bar(range(100), "train", "images"):
        now[0] += 1
    shown = [line.split("% ")[1].partition(", ")[0] for line in stream.getvalue().splitlines()]
    assert shown == ["30/100 [00:30<01:10", "60/100 [01:00<00:40", "90/100 [01:30<00:10", "100/100 [01:40<00:00"]
    assert "train:  30% 30/100 [00:30<01:10,  1.00 images/s]" in stream.getvalue()
    assert stream.getvalue().replace("\n", "").isprintable()
    console = Console(None)
    console.log("nothing is written anywhere")
    assert list(console.bar(range(3), "x", total=3)) == [0, 1, 2]


def test_the_log_drops_what_a_resumed_run_does_again(tmp_path):
    log = Log(tmp_path, step=0, evaluated=False, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, step / 2, {"lr": 1e-4, "loss": 10.0 / step})
    log.write(2, 1.0, {"AP": 0.5})
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,2,0.0001,3.")  # a kill in the middle of a row
    before = (tmp_path / "log.csv").read_text().splitlines()
    Log(tmp_path, step=2, evaluated=True, tensorboard=False)
    assert (tmp_path / "log.csv").read_text().splitlines() == [*before[:3], before[4]]
    assert read_log(tmp_path / "log.csv")[1] == {"step": 2, "epoch": 1.0, "lr": 1e-4, "loss": 5.0}
    Log(tmp_path, step=2, evaluated=False, tensorboard=False)
    assert (tmp_path / "log.csv").read_text().splitlines() == before[:3]


def test_the_log_has_columns_for_the_branches_that_the_model_has(tmp_path):
    options = {"evaluated": False, "tensorboard": False}
    for losses, columns in ((LOSS_PARTS, set()), ((*LOSS_PARTS, "loss_routes"), {"loss_routes"})):
        log = Log(tmp_path, step=1, losses=losses, **options)  # the second time, of a resumed run
        log.write(2, 0.5, {"loss": 7.0, "loss_routes": 4.0})
        header = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
        assert set(header) == set(COLUMNS) - set(BRANCH_PARTS) | columns
    Log(tmp_path, step=2, losses=(*LOSS_PARTS, "loss_routes"), **options)
    assert read_log(tmp_path / "log.csv") == [{"step": 2, "epoch": 0.5, "loss": 7.0, "loss_routes": 4.0}]


def test_tensorboard_gets_what_the_log_gets(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, step=0, evaluated=False, tensorboard=True)
    log.write(5, 0.5, {"loss": 7.0, "AP": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("losses/loss")] == [(5, 7.0)]
    assert events.Scalars("metrics/AP")[0].value == 0.25


def test_curves_are_drawn_from_the_log(tmp_path):
    with pytest.raises(ValueError, match="no rows yet"):
        draw_curves(tmp_path)
    log = Log(tmp_path, step=0, evaluated=False, tensorboard=False)
    log.write(10, 1, {"lr": 1e-4, "loss": 20.0})
    log.write(20, 2, {"lr": 1e-5, "loss": 10.0})
    without = np.asarray(Image.open(draw_curves(tmp_path)).convert("L"))
    log.write(20, 2, {"AP": 0.5, "AP50": 0.7, "AP75": math.nan})
    picture = np.asarray(Image.open(draw_curves(tmp_path)).convert("L"))
    assert picture.shape == without.shape and picture.shape[1] > 1000
    half = picture.shape[1] // 2
    assert (picture[:, half:] != without[:, half:]).any(), "the evaluation is not in the image"
    assert not list(tmp_path.glob(".*")), "a temporary file stays behind"


def test_missing_extras_are_logged_once_and_do_not_stop_a_run(data, tmp_path, monkeypatch, capsys):
    quick_runs(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(toy_config(data, tmp_path / "run", max_steps=1, tensorboard=True))
    lines = capsys.readouterr().out.splitlines()
    assert sum("tensorboard is not installed" in line for line in lines) == 1
    assert sum('pip install -e ".[plots]"' in line for line in lines) == 1
    assert not (tmp_path / "run/curves.png").exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"\[plots\]"):
        draw_curves(tmp_path / "run")


def test_a_run_ends_with_its_best_and_final_model_and_logs_their_paths(data, tmp_path, capsys):
    result = train(toy_config(data, tmp_path / "run", evaluate_every=1))
    text = capsys.readouterr().out
    for line in (
        "8 images to train on, 3 to validate on",
        "effective batch: 2 images = 2 x 1 accumulated, on CPU",
        "epoch 2: AP ",
        "finished: 8 steps",
        f"best model: {tmp_path / 'run/best'} (AP ",
        f"python -m dino predict --checkpoint {tmp_path / 'run'}",
    ):
        assert line in text
    assert result.best is not None and result.best_model is not None and result.final_model is not None
    assert result.best["AP"] == max(entry["AP"] for entry in result.history) and len(result.history) == 2
    assert (result.step, result.epochs, result.skipped_steps, result.stopped_by) == (8, 2, 0, None)
    for folder in (result.best_model, result.final_model, tmp_path / "run/last"):
        model, categories = load_model(folder)
        assert model.config.num_classes == 2
        assert categories is not None and dict(zip(categories.ids, categories.names, strict=True)) == NAMES
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000
    assert set(read_log(tmp_path / "run/log.csv")[0]) <= set(COLUMNS)
    assert json.loads((tmp_path / "run/config.json").read_text())["epochs"] == 2


def test_a_run_counts_in_the_singular_and_advises_only_what_can_be_done(data, tmp_path, capsys):
    shutil.rmtree(data / "valid")
    train(toy_config(data, tmp_path / "run", epochs=1, max_steps=1, batch_size=1, evaluate_every=0))
    text = capsys.readouterr().out
    for line in ("length: 1 epoch of 8 steps", "effective batch: 1 image = 1 x 1", "finished: 1 step in"):
        assert line in text
    assert "dino predict" in text
    assert "dino evaluate" not in text, "there is no validation split"


def test_evaluation_does_not_change_the_training_that_follows(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    evaluate = dino.training.evaluation.evaluate

    def random_evaluate(*arguments, **options):
        torch.rand(3)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(dino.training.evaluation, "evaluate", random_evaluate)
    for run, every in (("with", 1), ("without", 0)):
        train(toy_config(data, tmp_path / run, evaluate_every=every), quiet=True)
    a, b = weights(tmp_path / "with/final"), weights(tmp_path / "without/final")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_model_with_the_highest_precision_is_kept(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    precisions = iter([0.3, math.nan, 0.5, 0.4])

    def scripted(*arguments, **options):
        metrics: dict[str, Any] = {**dict.fromkeys(METRIC_NAMES, 0.1), "AP": next(precisions)}
        return CocoMetrics(**metrics)

    monkeypatch.setattr(dino.training.evaluation, "evaluate", scripted)
    config = toy_config(data, tmp_path / "run", epochs=4, evaluate_every=1, keep_checkpoints=9)
    result = train(config, quiet=True)
    assert result.best is not None and (result.best["AP"], result.best["epoch"]) == (0.5, 3)
    assert_same_weights(tmp_path / "run/best", tmp_path / "run/checkpoints/step-00000012")
    size = {"short_side": 64, "long_side": 96}
    extra = json.loads((tmp_path / "run/best/model.json").read_text())["extra"]
    assert extra == {"step": 12, "epoch": 3.0, "AP": 0.5, "image_size": size}


def test_a_signal_leaves_an_evaluation_at_once_and_the_resumed_run_repeats_it(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    evaluate = dino.training.evaluation.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    config = toy_config(data, tmp_path / "run", epochs=1, evaluate_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(dino.training.evaluation, "evaluate", interrupted)
        result = train(config, quiet=True)
    assert (result.stopped_by, result.step, result.history) == ("SIGTERM", 4, [])
    assert result.final_model is None and result.last_checkpoint is not None
    resumed = train(dataclasses.replace(config, resume=True), quiet=True)
    assert [entry["step"] for entry in resumed.history] == [4] and resumed.final_model is not None


def test_fine_tuning_starts_from_the_trained_weights(data, tmp_path, monkeypatch, capsys):
    quick_runs(monkeypatch)
    train(toy_config(data, tmp_path / "first", epochs=1), quiet=True)
    annotations = data / "train/_annotations.coco.json"
    renamed = annotations.read_text().replace('"green"', '"blue"')
    for split in ("train", "valid"):
        (data / split / "_annotations.coco.json").write_text(
            (data / split / "_annotations.coco.json").read_text().replace('"green"', '"blue"')
        )
    assert annotations.read_text() == renamed
    config = toy_config(data, tmp_path / "second", finetune=tmp_path / "first/final", lr=0, backbone_lr=0, max_steps=1)
    train(config)
    report = next(line for line in capsys.readouterr().out.splitlines() if "tensors loaded" in line)
    assert "reinitialised" in report and "blue" in report
    first, second = weights(tmp_path / "first/final"), weights(tmp_path / "second/final")
    assert torch.equal(first["encoder.level_embed"], second["encoder.level_embed"])
    red, blue = 0, 1
    head = "decoder.class_head.weight"
    assert torch.equal(first[head][red], second[head][red])
    assert not torch.equal(first[head][blue], second[head][blue])


def test_too_few_images_for_a_step_are_an_error_before_training(data, tmp_path):
    with pytest.raises(ValueError, match=r"8 training images .* one step takes, 12 .* Lower"):
        train(toy_config(data, tmp_path / "run", batch_size=4, accumulate=3), quiet=True)


def test_old_checkpoints_are_deleted_and_last_points_to_the_newest(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (5, 10, 15):
        folder.write(step, lambda path: (path / "x").touch(), {}, keep=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000010", "step-00000015"]
    assert (tmp_path / "last").resolve() == folder.last_complete() == folder.checkpoints / "step-00000015"


@pytest.mark.parametrize(
    ("done", "text"), [(0, "0"), (9e-5, "0"), (0.25, "0.25"), (1 / 3, "0.333"), (10, "10"), (12.5, "12.5")]
)
def test_epochs_are_short_numbers(done: float, text: str) -> None:
    assert epochs(done) == text
