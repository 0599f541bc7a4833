"""What stands beside the training steps: hooks, early stopping, fine-tuning, images left out, and failures of these."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.dino.training.train_toys import TINY, assert_same_weights, quick_runs, toy_config, write_rectangles

# dino.commands.train needs it.
pytest.importorskip("tyro")
import dino.training.evaluation
import dino.training.log
import dino.training.loop
from dino.commands.train import parse
from dino.training.log import METRIC_COLUMNS, read_log
from dino.training.loop import Loop
from dino.training.pace import Pace
from dino.training.step import LOSS_PARTS
from dino.training.train import Hook, TrainingError, train


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rectangles(tmp_path / "rectangles")


class Recorder(Hook):
    """Keeps what it is told, and fails where it should."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[tuple[str, Any]] = []
        self.fails = fails

    def _tell(self, event: str, what: Any) -> None:
        self.told.append((event, what))
        if event == self.fails:
            raise ConnectionError("no network")

    def step(self, step, epoch, losses):
        assert set(losses) == set(LOSS_PARTS) and 0 < epoch <= 1
        self._tell("step", step)

    def evaluation(self, step, epoch, metrics):
        assert 0 <= metrics["AP50"] <= 1
        self._tell("evaluation", step)

    def end(self, result):
        self._tell("end", result)


@pytest.mark.parametrize("fails", ["", "step", "evaluation", "end"])
def test_hooks_are_told_of_steps_evaluations_and_the_end_and_never_end_a_run(data, tmp_path, monkeypatch, fails):
    quick_runs(monkeypatch)
    recorder = Recorder(fails)
    config = toy_config(data, tmp_path / "run", epochs=1, evaluate_every=1)
    result = train(config, quiet=True, hooks=[recorder])
    assert recorder.told == [*(("step", k) for k in (1, 2, 3, 4)), ("evaluation", 4), ("end", result)]
    assert len(result.failures) == (1 if fails in ("step", "evaluation") else 0)


def test_hooks_are_told_of_an_error(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    recorder = Recorder()
    with pytest.raises(TrainingError):
        train(toy_config(data, tmp_path, lr=1e9, clip=math.inf, epochs=50), quiet=True, hooks=[recorder])
    assert recorder.told[-1] == ("end", None)


def test_a_failing_evaluation_or_log_does_not_end_a_run(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dino.training.evaluation, "evaluate", fail)
    monkeypatch.setattr(dino.training.log.Log, "_append", fail)
    monkeypatch.setattr(dino.training.log, "write_whole", lambda *arguments: None)
    result = train(toy_config(data, tmp_path / "run", epochs=2, evaluate_every=1), quiet=True)
    assert result.final_model is not None and result.step == 8
    assert [failure.split(" failed")[0] for failure in result.failures] == ["log.csv", "the evaluation"]


def test_a_run_stops_early_when_ap_no_longer_rises_and_stays_stopped(data, tmp_path, monkeypatch, capsys):
    quick_runs(monkeypatch)
    aps = iter([0.0, 0.0, 0.0, 0.2, 0.3, 0.3, 0.1, 0.4])
    summary = {name: 0.0 for name in METRIC_COLUMNS if not name.endswith("_ema")}
    metrics = SimpleNamespace(summary=lambda: {**summary, "AP": next(aps)})
    monkeypatch.setattr(dino.training.evaluation, "_evaluate", lambda *arguments: metrics)
    config = toy_config(data, tmp_path / "run", epochs=9, evaluate_every=1, patience=2)
    result = train(config)
    assert result.epochs == 7 and result.final_model is not None
    assert "2 evaluations without an AP above 30.0, of epoch 6" in capsys.readouterr().out
    assert train(dataclasses.replace(config, resume=True), quiet=True).step == result.step
    assert train(dataclasses.replace(config, resume=True, patience=0, epochs=8), quiet=True).epochs == 8


def test_fine_tuning_takes_a_run_and_refuses_another_model(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    source = train(toy_config(data, tmp_path / "source", max_steps=2), quiet=True)
    still = {"lr": 0.0, "backbone_lr": 0.0, "weight_decay": 0.0}
    final = source.folder / "final"
    for path in (source.folder, final, final / "model.safetensors"):
        config = toy_config(data, tmp_path / f"tuned-{path.name}", max_steps=1, finetune=path, **still)
        assert_same_weights(final, train(config, quiet=True).folder / "final")
    other = dataclasses.replace(TINY, hidden_dim=64)
    with pytest.raises(ValueError, match=r"finetune: .* is another model than the one to train"):
        train(toy_config(data, tmp_path / "other", finetune=source.folder, model=other), quiet=True)
    assert not (tmp_path / "other").exists()
    arguments = f"--data {data} --finetune {source.folder} --output {tmp_path / 'x'}".split()
    assert parse(arguments).model == dataclasses.replace(TINY, num_classes=2)
    assert parse([*arguments, "--preset", "dino_tiny"]).model.hidden_dim == 128


def test_images_left_out_are_named_once_and_counted_at_the_end(data, tmp_path, monkeypatch, capsys):
    quick_runs(monkeypatch)
    broken = shutil.copytree(data, tmp_path / "data")
    for file in ("train/1.png", "valid/0.png"):
        (broken / file).write_bytes((broken / file).read_bytes()[:80])
    train(toy_config(broken, tmp_path / "run", epochs=3, evaluate_every=1))
    lines = capsys.readouterr().out.splitlines()
    for use, name in (("training", "train/1.png"), ("validation", "valid/0.png")):
        assert sum(f"left out of {use}: " in line and name in line for line in lines) == 1
        assert f"left out of {use}: 1 image, named above" in lines


def test_a_checkpoint_that_is_due_is_written_once(data, tmp_path, monkeypatch):
    quick_runs(monkeypatch)
    saved: list[int] = []
    monkeypatch.setattr(dino.training.loop, "save_checkpoint", lambda run: saved.append(run.state.step))
    # Due during the third step, until it is written.
    monkeypatch.setattr(Loop, "_checkpoint_is_due", lambda loop: loop.run.state.step >= 2 and not saved)
    train(toy_config(data, tmp_path / "run", batch_size=1, epochs=1, evaluate_every=0), quiet=True)
    assert saved == [4, 8], "every process knows it one step later; the epoch has 8 steps"


@pytest.mark.parametrize(
    ("device", "seconds", "computed", "shown"),
    [("cpu", 4.0, 1.0, True), ("cpu", 2.0, 1.0, False), ("cpu", 1.0, 2.0, False), ("cuda", 4.0, 1.0, False)],
)
def test_steps_that_wait_more_than_they_compute_are_reported_once(monkeypatch, device, seconds, computed, shown):
    clock = {"monotonic": 0.0, "process_time": 0.0}
    for name in clock:
        monkeypatch.setattr(f"dino.training.pace.time.{name}", lambda name=name: clock[name])
    pace, lines = Pace(), []
    for step in range(30):
        clock["monotonic"] += 100.0 if step == 0 else seconds  # the first step also loads and compiles
        clock["process_time"] += computed
        lines.append(pace.advice(torch.device(device), seconds, 0.0, 2))
    advice = [line for line in lines if line]
    assert len(advice) == shown
    assert not shown or "slow: 10 steps took 40.0 s, in which this process computed for 10.0 s" in advice[0]


@pytest.mark.parametrize(("loading", "shown"), [(0.6, 1), (0.25, 1), (0.15, 0)])
def test_waiting_for_images_is_measured_and_much_of_it_reported_once(monkeypatch, loading, shown):
    clock = [0.0]
    for name in ("monotonic", "process_time"):
        monkeypatch.setattr(f"dino.training.pace.time.{name}", lambda: clock[0])

    def loader():
        for step in range(160):
            clock[0] += 100.0 if step == 0 else loading  # the first batch starts the workers
            yield step

    pace, lines = Pace(), []
    for step in pace.watch(loader()):
        clock[0] += 1.0 - loading
        waited = pace.waited()
        assert waited == pytest.approx(loading if step else 100.0)
        lines.append(pace.advice(torch.device("cpu"), 1.0 if step else 101.0, waited, 3))
    advice = [line for line in lines if line]
    assert len(advice) == shown and lines[50:51] == advice[:1] * shown + [None] * (1 - shown)
    assert not shown or (f"waiting: {loading:.0%} of the last 50 steps" in advice[0] and "(now 3)" in advice[0])


def test_the_share_of_waiting_is_logged_and_shown(data, tmp_path, monkeypatch, capsys):
    quick_runs(monkeypatch)
    monkeypatch.setattr(Pace, "waited", lambda pace: 1e9)
    monkeypatch.setattr("dino.common.console.SECONDS_BETWEEN_LINES", 0.0)
    train(toy_config(data, tmp_path / "run", epochs=1))
    rows = read_log(tmp_path / "run" / "log.csv")
    assert rows and all(row["waiting"] == pytest.approx(1e9 * row["images_per_second"] / 2, rel=1e-3) for row in rows)
    assert "% for images" in capsys.readouterr().out
