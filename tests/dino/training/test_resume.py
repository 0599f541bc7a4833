"""An interrupted and resumed run ends with the bits of an uninterrupted one, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from dino.data import CocoDataset, DatasetError
from dino.training.log import read_log
from dino.training.run_folder import RunFolder
from dino.training.train import TrainConfig, TrainingError, train
from tests.dino.training.train_toys import (
    assert_same_weights,
    child_process,
    quick_runs,
    toy_config,
    wait_for,
    weights,
    write_rectangles,
)

FILE_EVENTS = ("open", "os.", "shutil.")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_runs(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles")


def killed_training(config: TrainConfig, event: int | None) -> None:
    """Train, and kill this process before the `event`-th operation on files of the run."""
    seen = 0

    def count(name: str, arguments: tuple) -> None:
        nonlocal seen
        if name.startswith(FILE_EVENTS) and any(str(config.output) in str(argument) for argument in arguments):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    train(config, quiet=True)


def test_train_four_epochs_equals_two_and_two_resumed(data, tmp_path):
    options = {"evaluate_every": 2, "ema_decay": 0.9, "accumulate": 2, "batch_size": 2}
    train(toy_config(data, tmp_path / "whole", epochs=4, **options), quiet=True)
    half = train(toy_config(data, tmp_path / "parts", epochs=2, **options), quiet=True)
    assert (half.step, half.epochs) == (4, 2)
    result = train(toy_config(data, tmp_path / "parts", epochs=4, resume=True, **options), quiet=True)
    for model in ("final", "final_ema", "best", "checkpoints/step-00000006"):
        assert_same_weights(tmp_path / "whole" / model, tmp_path / "parts" / model)
    assert [entry["step"] for entry in result.history] == [4, 8]
    whole, parts = (read_log(tmp_path / run / "log.csv") for run in ("whole", "parts"))
    assert len(whole) == 10
    assert [without_speed(row) for row in whole] == [without_speed(row) for row in parts]


def without_speed(row: dict[str, float]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items() if name not in ("images_per_second", "waiting")}


def test_training_changes_what_the_comparison_sees(data, tmp_path):
    train(toy_config(data, tmp_path / "one", epochs=1), quiet=True)
    train(toy_config(data, tmp_path / "other", epochs=1, seed=43), quiet=True)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_weights(tmp_path / "one/final", tmp_path / "other/final")


def test_kills_at_any_moment_change_nothing_but_time(data, tmp_path):
    train(toy_config(data, tmp_path / "whole", checkpoint_every=1, ema_decay=0.9), quiet=True)
    options = {"checkpoint_every": 1, "keep_checkpoints": 2, "ema_decay": 0.9, "resume": True}
    config = toy_config(data, tmp_path / "killed", **options)
    folder = RunFolder(config.output)
    numbers = random.Random(0)
    kills_while_writing = 0
    for attempt in range(10):
        by_time = attempt % 4 == 3
        config = dataclasses.replace(config, workers=int(by_time))
        process = child_process(killed_training, config, None if by_time else numbers.randint(1, 90))
        if by_time:
            process.join(numbers.uniform(0.3, 1.2))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills_while_writing += any(folder.checkpoints.glob(".unfinished-*"))
        rows = read_log(config.output / "log.csv")
        if rows:
            last = folder.last_complete()
            saved = folder.state(last)["run"]["step"] if last else 0
            assert saved >= rows[-1]["step"] - 1, "more than one interval is lost"
    assert kills_while_writing >= 2
    process = child_process(killed_training, config, None)
    process.join()
    assert process.exitcode == 0
    for model in ("final", "final_ema", "checkpoints/step-00000008"):
        assert_same_weights(tmp_path / "whole" / model, tmp_path / "killed" / model)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000007", "step-00000008"]


def command_line(arguments: list[str], output: Path) -> int:
    with output.open("w") as file:
        sys.stdout = file
        from dino.commands.train import train_command  # which needs tyro

        return train_command(arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_command_to_resume(data, tmp_path, number):
    options = (
        f"--data {data} --output {tmp_path / 'run'} --preset dino_tiny --model.hidden-dim 32 --model.num-queries 10"
    )
    options += " --epochs 500 --short-sides 64 --long-side 96 --device cpu --workers 1 --log-every 1 --evaluate-every 0"
    process = child_process(command_line, options.split(), tmp_path / "out.txt")
    log = tmp_path / "run/log.csv"
    wait_for(lambda: len(read_log(log)) >= 2 or process.exitcode is not None)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 128 + number
    text = (tmp_path / "out.txt").read_text()
    steps = read_log(log)[-1]["step"]
    assert f"stopped by {number.name} at step {steps}" in text
    state = RunFolder(tmp_path / "run").state(tmp_path / "run/last")
    assert state["run"]["step"] == steps

    if number == signal.SIGINT:
        return
    command = shlex.split(text.strip().splitlines()[-1].partition("resume with: ")[2])
    assert command[:4] == ["python", "-m", "dino", "train"]
    process = child_process(command_line, [*command[4:], "--max-steps", str(steps + 2)], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 0
    assert [row["step"] for row in read_log(log) if "loss" in row] == list(range(1, int(steps) + 3))


def test_an_interrupted_evaluation_is_repeated(data, tmp_path):
    config = toy_config(data, tmp_path / "run", epochs=1, evaluate_every=1)
    train(config, quiet=True)
    folder = RunFolder(config.output)
    state = folder.state(config.output / "last")["run"]
    # The state after a kill between the end of the epoch and the end of its evaluation.
    folder.update(4, run={**state, "evaluated_step": -1, "history": [], "best": None})
    result = train(dataclasses.replace(config, resume=True), quiet=True)
    assert [entry["step"] for entry in result.history] == [4]
    assert sum("AP" in row for row in read_log(config.output / "log.csv")) == 1
    assert folder.state(config.output / "last")["run"]["evaluated_step"] == 4


def test_an_incomplete_checkpoint_is_passed_over(data, tmp_path):
    config = toy_config(data, tmp_path / "run", checkpoint_every=2)
    train(config, quiet=True)
    folder = RunFolder(config.output)
    newest = folder.last_complete()
    assert newest is not None and newest.name == "step-00000008"
    with (newest / "optimizer.safetensors").open("r+b") as file:
        file.truncate(1000)
    before = folder.last_complete()
    assert before is not None and before.name == "step-00000006"


@pytest.fixture
def images_read(monkeypatch) -> list[tuple[int, int]]:
    """The (epoch, index) of each training image read, in order."""
    read: list[tuple[int, int]] = []
    load = CocoDataset.__getitem__

    def recorded(self, key):
        read.extend([key] if self.train else [])
        return load(self, key)

    monkeypatch.setattr(CocoDataset, "__getitem__", recorded)
    return read


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_seed_in_mid_epoch_or_model_is_refused_and_changes_nothing(data, tmp_path, images_read):
    config = toy_config(data, tmp_path / "run", epochs=1, max_steps=2)
    train(config, quiet=True)
    before = contents(config.output)
    resumed = dataclasses.replace(config, resume=True, max_steps=0)
    with pytest.raises(TrainingError, match=r"--seed is 7, .* seed 42: .* Pass --seed 42"):
        train(dataclasses.replace(resumed, seed=7), quiet=True)
    with pytest.raises(TrainingError, match=r"another model: .* differ"):
        train(dataclasses.replace(resumed, model=dataclasses.replace(config.model, ffn_dim=64)), quiet=True)
    assert contents(config.output) == before
    train(resumed, quiet=True)
    assert sorted(images_read) == [(0, index) for index in range(8)]


def test_another_seed_at_the_end_of_an_epoch_shuffles_the_next_one(data, tmp_path, images_read):
    config = toy_config(data, tmp_path / "run", epochs=1)
    train(config, quiet=True)
    train(dataclasses.replace(config, epochs=2, seed=7, resume=True), quiet=True)
    assert sorted(images_read) == [(epoch, index) for epoch in (0, 1) for index in range(8)]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "steps_left", "images_left"), [(1, 1, 6, 0), (3, 1, 2, 0), (1, 4, 1, 2), (7, 1, 0, 6)]
)
def test_no_image_is_read_twice_after_another_batch_size(
    batch_size, accumulate, steps_left, images_left, data, tmp_path, images_read
):
    config = toy_config(data, tmp_path / "run", epochs=1, max_steps=1)
    train(config, quiet=True)
    changes = {"batch_size": batch_size, "accumulate": accumulate, "resume": True, "max_steps": 0}
    result = train(dataclasses.replace(config, **changes), quiet=True)
    assert (result.step, result.epochs) == (1 + steps_left, 1)
    used = images_read[: 8 - images_left]
    assert len(set(used)) == len(used) and {epoch for epoch, _ in used} == {0}


def test_other_images_or_classes_are_refused(data, tmp_path):
    config = toy_config(data, tmp_path / "run", epochs=1)
    train(config, quiet=True)
    for name, before, after in (("images", 'id": 100,', 'id": 200,'), ("classes", '"green"', '"blue"')):
        other = tmp_path / name
        shutil.copytree(data, other)
        for file in other.glob("*/_annotations.coco.json"):
            file.write_text(file.read_text().replace(before, after))
        with pytest.raises(TrainingError, match="other images or classes"):
            train(dataclasses.replace(config, data=other, epochs=2, resume=True), quiet=True)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert train(dataclasses.replace(config, data=moved, epochs=2, resume=True), quiet=True).step == 8


def test_a_smaller_batch_continues_with_the_same_images(data, tmp_path):
    """As advised after running out of memory: half the batch, accumulated twice."""
    options = {"epochs": 1, "evaluate_every": 0, "short_sides": (64,)}
    train(toy_config(data, tmp_path / "whole", batch_size=4, **options), quiet=True)
    train(toy_config(data, tmp_path / "halved", batch_size=4, max_steps=1, **options), quiet=True)
    halved = toy_config(data, tmp_path / "halved", batch_size=2, accumulate=2, resume=True, **options)
    assert train(halved, quiet=True).step == 2
    whole, parts = (read_log(tmp_path / run / "log.csv")[-1] for run in ("whole", "halved"))
    assert parts["loss_ce"] == pytest.approx(whole["loss_ce"], rel=1e-4)


def test_a_run_is_neither_mixed_with_another_nor_deleted_unasked(data, tmp_path):
    config = toy_config(data, tmp_path / "run", epochs=1)
    train(config, quiet=True)
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="--resume to continue it, --overwrite to delete it"):
        train(config, quiet=True)
    result = train(dataclasses.replace(config, overwrite=True, max_steps=1), quiet=True)
    assert result.step == 1 and (tmp_path / "run/notes.txt").read_text() == "mine"


def test_a_run_that_never_started_can_simply_be_started_again(data, tmp_path):
    config = toy_config(data, tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match="fewer than one step takes"):
        train(dataclasses.replace(config, batch_size=9), quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.csv").write_text("step,epoch\n1,0.5\n")
    assert train(config, quiet=True).step == 1
    assert len(read_log(tmp_path / "run/log.csv")) == 1


def test_resuming_without_a_checkpoint_starts_a_new_run(data, tmp_path):
    result = train(toy_config(data, tmp_path / "run", resume=True, max_steps=1), quiet=True)
    assert result.step == 1 and result.last_checkpoint == tmp_path / "run/checkpoints/step-00000001"


def fill_the_disk(monkeypatch, *names):
    """Let nothing be renamed to what ends with one of the names."""
    for module, name in ((os, "rename"), (Path, "replace")):
        replaced = getattr(module, name)

        def full(source, target, replaced=replaced):
            if str(target).endswith(names):
                raise OSError(28, "No space left on device")
            return replaced(source, target)

        monkeypatch.setattr(module, name, full)


def test_a_run_goes_on_without_room_for_a_checkpoint(data, tmp_path, monkeypatch):
    config = toy_config(data, tmp_path / "run", checkpoint_every=2)
    fill_the_disk(monkeypatch, "step-00000004", "step-00000006")
    result = train(config, quiet=True)
    assert (result.step, len(result.failures)) == (8, 2) and "step 4 could not be written" in result.failures[0]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000002", "step-00000008"]


def test_the_model_is_saved_where_the_last_checkpoint_does_not_fit(data, tmp_path, monkeypatch):
    config = toy_config(data, tmp_path / "run", checkpoint_every=2)
    fill_the_disk(monkeypatch, "step-00000008")
    result = train(config, quiet=True)
    assert result.final_model is not None and (result.final_model / "model.safetensors").exists()
    assert len(result.failures) == 1


def test_no_room_for_the_model_is_an_error_that_leaves_the_checkpoints(data, tmp_path, monkeypatch):
    config = toy_config(data, tmp_path / "run", max_steps=4, checkpoint_every=2)
    fill_the_disk(monkeypatch, "final/model.safetensors")
    with pytest.raises(TrainingError, match=r"final could not be written: .* No space left .* --resume"):
        train(config, quiet=True)
    monkeypatch.undo()
    assert train(dataclasses.replace(config, resume=True), quiet=True).final_model is not None


def test_an_earlier_run_is_deleted_when_the_new_one_starts(data, tmp_path):
    config = toy_config(data, tmp_path / "run", max_steps=1)
    train(config, quiet=True)
    with pytest.raises(DatasetError):
        train(dataclasses.replace(config, overwrite=True, data=tmp_path), quiet=True)
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_no_file_of_a_checkpoint_is_a_pickle(data, tmp_path):
    train(toy_config(data, tmp_path / "run", epochs=1, ema_decay=0.9), quiet=True)
    files = {path.name for path in (tmp_path / "run/last").iterdir()}
    tensors = {f"{name}.safetensors" for name in ("model", "ema", "optimizer", "rng")}
    assert files == {*tensors, "model.json", "state.json"}
    state = json.loads((tmp_path / "run/last/state.json").read_text())
    assert state["run"]["step"] == 4 and state["config"]["lr"] == 1e-3


def test_deterministic_runs_agree_to_the_last_bit(data, tmp_path):
    for run in ("one", "two"):
        config = toy_config(data, tmp_path / run, epochs=1, deterministic=True, ema_decay=0.9, clip=1.0)
        train(config, quiet=True)
    assert_same_weights(tmp_path / "one/final", tmp_path / "two/final")
    assert not torch.are_deterministic_algorithms_enabled(), "the setting outlives the run"
    assert any((tensor != 0).any() for tensor in weights(tmp_path / "one/final").values())
