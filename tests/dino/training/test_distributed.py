"""Several processes, replicated or sharded, take the same steps as one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino.model.backbones.resnet import RESNETS, FrozenBatchNorm2d
from dino.training.log import read_log
from dino.training.train import TrainConfig, train
from tests.dino.training.train_toys import (
    TINY,
    assert_same_weights,
    quick_runs,
    run_ranks,
    toy_config,
    weights,
    write_rectangles,
)

# No randomness between data and loss, images of one size, and a learning rate that does not amplify rounding.
COMPARABLE = {
    "model": dataclasses.replace(TINY, denoising="off"),
    "short_sides": (64,),
    "lr": 1e-5,
    "clip": 0.5,
    "epochs": 1,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_runs(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles", valid=3)


def train_quietly(config: TrainConfig) -> None:
    """Train with the first layers of the backbone frozen, as those of the larger ResNets are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, "resnet_tiny", (*RESNETS["resnet_tiny"][:3], FrozenBatchNorm2d))
        train(config, quiet=True)


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory) -> Path:
    """Two steps of four images."""
    run = tmp_path_factory.mktemp("one") / "run"
    train_quietly(toy_config(data, run, batch_size=4, **COMPARABLE))
    return run


# Each process has a batch of one, accumulated twice.
TWICE_TWO = {"batch_size": 1, "accumulate": 2, "ema_decay": 0.9, "evaluate_every": 1, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def replicated(data, tmp_path_factory) -> Path:
    """The same by two processes."""
    run = tmp_path_factory.mktemp("ddp") / "run"
    run_ranks(2, train_quietly, toy_config(data, run, **TWICE_TWO, **COMPARABLE))
    return run


@pytest.fixture(scope="module")
def sharded(data, tmp_path_factory) -> Path:
    """The same by two processes with half of every parameter each."""
    run = tmp_path_factory.mktemp("fsdp") / "run"
    run_ranks(2, train_quietly, toy_config(data, run, strategy="fsdp2", **TWICE_TWO, **COMPARABLE))
    return run


def steps(run: Path) -> list[dict[str, float]]:
    return [row for row in read_log(run / "log.csv") if "loss" in row]


def assert_same_course(first: Path, second: Path) -> None:
    pairs = list(zip(steps(first), steps(second), strict=True))
    assert len(pairs) == 2
    for a, b in pairs:
        for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_encoder", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_two_processes_take_the_steps_of_one_with_the_whole_batch(one_process, replicated):
    assert_same_course(one_process, replicated)


def test_sharded_steps_match_replicated_ones(replicated, sharded):
    assert_same_course(replicated, sharded)
    for model in ("final", "final_ema"):
        a, b = weights(replicated / model), weights(sharded / model)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=5e-6, msg=name)


def test_processes_draw_different_noise(replicated):
    states = load_file(replicated / "last/rng.safetensors")
    assert sorted(states) == ["0.cpu_state", "1.cpu_state"]
    assert not torch.equal(states["0.cpu_state"], states["1.cpu_state"])


def test_processes_agree_on_the_evaluation_of_all_images(replicated, sharded):
    for run in (replicated, sharded):
        (entry,) = [row for row in read_log(run / "log.csv") if "AP" in row]
        assert {"AP", "AR100", "AP_ema"} <= entry.keys()
        assert (run / "best/model.safetensors").exists()


def test_one_process_resumes_a_run_of_two_sharded_ones(data, sharded, replicated, tmp_path):
    options = {"batch_size": 4, "ema_decay": 0.9, "resume": True, **COMPARABLE, "epochs": 2}
    last = {}
    for name, run in (("sharded", sharded), ("replicated", replicated)):
        copy = tmp_path / name
        copy.mkdir()
        (copy / "checkpoints").symlink_to(run / "checkpoints")
        train_quietly(toy_config(data, copy, **options))
        last[name] = steps(copy)[-1]
        assert last[name]["step"] == 4
    assert last["sharded"]["loss"] == pytest.approx(last["replicated"]["loss"], rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_resumed_processes_end_where_uninterrupted_ones_do(data, tmp_path, strategy, request):
    whole = request.getfixturevalue({"ddp": "replicated", "fsdp2": "sharded"}[strategy])
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoints/step-00000001", run / "checkpoints/step-00000001")
    options = {**TWICE_TWO, "evaluate_every": 0, "strategy": strategy, **COMPARABLE}
    run_ranks(2, train_quietly, toy_config(data, run, resume=True, **options))
    for model in ("final", "final_ema"):
        assert_same_weights(whole / model, run / model)


@pytest.mark.parametrize("run", ["replicated", "sharded"])
def test_frozen_parameters_are_part_of_checkpoints(run, request):
    """They have weights and averages, but no gradient and no optimiser state."""
    checkpoint = request.getfixturevalue(run) / "checkpoints/step-00000001"
    frozen, trained = "backbone.conv1.weight", "backbone.layer2.0.conv1.weight"
    model, optimizer, ema = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer", "ema"))
    assert f"{trained}.exp_avg" in optimizer and not any(name.startswith(frozen) for name in optimizer)
    assert {frozen, trained} <= model.keys() & ema.keys()


def test_all_processes_raise_the_error_of_the_first(data, tmp_path):
    (tmp_path / "final").mkdir()
    run_ranks(2, fails_to_train, toy_config(data, tmp_path), "holds an earlier run")


def fails_to_train(config: TrainConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(config, quiet=True)
