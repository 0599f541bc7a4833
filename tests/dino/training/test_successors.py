"""Every switch of a successor in the modes of a training step: no waits, fixed operations, compiled, a whole run."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from dino.commands.train import parse
from dino.common.distributed import joined_ranks, replicate_or_shard
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.training.config import TrainConfig
from dino.training.log import read_log
from dino.training.optimizer import build_optimizer, set_learning_rates
from dino.training.precision import Precision
from dino.training.step import Step, compiled
from dino.training.train import train
from tests.dino.model.successors.successor_toys import ALL, POSITION, SWITCHES
from tests.dino.training import test_static
from tests.dino.training.test_static import ALONE, SIZES, Operations, batch_of, reports_of, step_of
from tests.dino.training.test_step import waits_of_a_step
from tests.dino.training.train_toys import TINY, quick_runs, run_ranks, weights, write_rectangles

every_switch = pytest.mark.parametrize("switches", SWITCHES, ids=str)
all_switches = pytest.mark.parametrize("switches", [POSITION, ALL], ids=["position", "all"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_runs(monkeypatch)


def tiny_model(switches: dict[str, Any]) -> DINO:
    torch.manual_seed(1)
    return DINO(dataclasses.replace(TINY, num_classes=2, num_denoising=50, **switches)).train()


def test_the_tuned_preset_has_detrex_settings() -> None:
    """Weight 2, 300 denoising queries, nothing constant in the backbone, and a lower rate for sampling offsets."""
    config = parse(["--data", "d", "--preset", "dino_4scale_r50_tuned"])
    assert (config.lr, config.backbone_lr, config.offsets_lr) == (2e-4, 2e-5, 2e-5)
    assert (config.model.class_weight, config.model.num_denoising) == (2.0, 300)
    given = parse(["--data", "d", "--preset=dino_4scale_r50_tuned", "--lr", "1e-3", "--model.class-weight=1"])
    assert (given.lr, given.offsets_lr, given.model.class_weight) == (1e-3, 2e-5, 1.0)
    with torch.device("meta"):
        model = DINO(config.model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    optimizer = build_optimizer(model, config)
    sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    # 12 layers of 8 heads, 4 levels and 4 points; stem and first stage are 222,400 parameters.
    assert sizes == [23_438_270 - 12 * 257 * 256, 23_232_512 + 222_400, 12 * 257 * 256]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 2e-5, 2e-5]
    set_learning_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-5, 2e-6, 2e-6])
    for rate in (-1.0, math.nan):
        with pytest.raises(ValueError, match="offsets_lr must be at least 0, or None, got"):
            dataclasses.replace(config, offsets_lr=rate)


def test_a_frozen_stem_has_no_gradient_and_others_have() -> None:
    for freeze_stem in (True, False):
        model = DINO(dataclasses.replace(TINY, backbone="resnet18", num_classes=2, freeze_stem=freeze_stem)).train()
        batch = batch_of(SIZES[2], 3, 1)
        criterion = SetCriterion(model.config)
        criterion.weighted_total(criterion(model(batch.images, batch.mask, batch.targets), batch.targets)).backward()
        stem = [p for n, p in model.backbone.named_parameters() if n.startswith(("conv1", "layer1"))]
        assert [parameter.grad is None for parameter in stem] == [freeze_stem] * len(stem)


@every_switch
def test_a_step_waits_for_nothing(switches: dict[str, Any]) -> None:
    waits_of_a_step(step_of(tiny_model(switches)), [batch_of(SIZES[2], 3, 1)])


@every_switch
def test_no_operation_of_what_is_replayed_depends_on_data(switches: dict[str, Any]) -> None:
    step = step_of(tiny_model(switches), amp="bf16", static=True)
    step([batch_of(SIZES[2], 3, 1)])
    replay, recorded = step._replayed_passes, []
    function = replay.function
    for counts in ((3, 1), (0, 0), (9, 100)):
        operations = Operations()
        replay.function = functools.partial(operations.record, function)
        step([batch_of(SIZES[2], *counts, seed=sum(counts))])
        recorded.append(operations.seen)
    assert len(recorded[0]) > 500 and recorded[0] == recorded[1] == recorded[2]
    report = step.finish()
    assert report is not None and report.skipped is None


@all_switches
def test_nothing_moves_between_host_and_device(switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_static, "tiny_model", lambda: tiny_model(switches))
    test_static.test_nothing_moves_between_host_and_device(monkeypatch)


@all_switches
def test_static_steps_are_the_plain_ones(switches: dict[str, Any]) -> None:
    batches = [[batch_of(SIZES[i % 5], i % 4, 2, seed=i, pad_to=128)] for i in range(3)]
    losses = []
    for static in (False, True):
        model = tiny_model(switches)
        torch.manual_seed(2)
        losses.append([report.losses for report in reports_of(step_of(model, static=static), batches)])
    for plain, replayed in zip(*losses, strict=True):
        assert replayed == pytest.approx(plain, rel=1e-4)


@pytest.mark.compiler
def test_compiled_steps_with_all_of_them_are_the_plain_ones() -> None:
    torch._dynamo.reset()
    batches = [[batch_of(SIZES[2], 2 * i, 1, seed=i)] for i in range(2)]
    losses, graphs = [], []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    backend: Any = counting
    for is_compiled in (False, True):
        model: Any = tiny_model(ALL)
        called, criterion = model, SetCriterion(model.config)
        if is_compiled:
            called, criterion = compiled(model, backend), compiled(criterion, backend)
        optimizer = build_optimizer(model, TrainConfig(Path(), lr=1e-3))
        step = Step(called, criterion, optimizer, Precision("off", "cpu"), ALONE, clip=0.1, compiled=is_compiled)
        torch.manual_seed(2)
        losses.append([report.losses for report in reports_of(step, batches)])
    for plain, other in zip(*losses, strict=True):
        assert other == pytest.approx(plain, rel=1e-3)
    assert len(graphs) == 2  # model and criterion, without breaks


def compare_steps_of_two_processes() -> None:
    batches = [batch_of(SIZES[2], 3, 1), batch_of(SIZES[2], 2, 4, seed=1)]
    losses = []
    with joined_ranks("cpu") as ranks:
        for strategy in ("ddp", "fsdp2"):
            module = replicate_or_shard(tiny_model(ALL), strategy, ranks)
            optimizer, precision = build_optimizer(module, TrainConfig(Path(), lr=1e-3)), Precision("off", "cpu")
            criterion = SetCriterion(dataclasses.replace(TINY, num_classes=2, **ALL))
            step = Step(module, criterion, optimizer, precision, ranks, clip=0.1)
            torch.manual_seed(2)
            losses.append([report.losses for report in reports_of(step, [[batches[ranks.rank]]] * 2)])
    for plain, sharded in zip(*losses, strict=True):
        assert all(math.isfinite(loss) for loss in plain.values()) and sharded == pytest.approx(plain, rel=1e-4)


def test_two_processes_train_with_all_of_them() -> None:
    run_ranks(2, compare_steps_of_two_processes)


def option_of(name: str, value: object) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--model.{option}" if value else f"--model.no-{option}"
    return f"--model.{option}={value}"


@every_switch
def test_the_command_line_trains_with_it(switches: dict[str, Any], tmp_path: Path) -> None:
    options = [option_of(name, value) for name, value in switches.items()]
    sizes = ("hidden_dim", "num_heads", "num_queries", "ffn_dim", "num_encoder_layers", "num_decoder_layers")
    small = [option_of(name, getattr(TINY, name)) for name in sizes]
    data = write_rectangles(tmp_path / "data")
    run = [
        "--epochs=1",
        "--workers=0",
        "--device=cpu",
        "--short-sides",
        "48",
        "64",
        "--long-side=96",
        "--no-crop",
        "--evaluate-every=1",
        "--lr=1e-3",
    ]
    config = parse(
        ["--data", str(data), "--output", str(tmp_path / "run"), "--preset=dino_tiny", *run, *small, *options]
    )
    assert {name: getattr(config.model, name) for name in switches} == switches
    result = train(config, quiet=True)
    assert result.exit_code == 0 and result.final_model is not None
    assert all(tensor.isfinite().all() for tensor in weights(result.final_model).values())
    branches = {"hybrid_queries": "loss_hybrid", "multi_route": "loss_routes"}
    with (tmp_path / "run/log.csv").open() as file:
        assert set(next(csv.reader(file))) & {*branches.values()} == {branches[n] for n in switches if n in branches}
    row = read_log(tmp_path / "run/log.csv")[0]
    shares = [value for name, value in row.items() if name in branches.values()]
    assert len(shares) == len(switches.keys() & branches.keys()) and all(0 < share < row["loss"] for share in shares)
