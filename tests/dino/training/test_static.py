"""Compiled and replayed steps: the results of plain ones, in operations and graphs that no data changes."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import dino_kernels
from dino.common.distributed import Ranks, joined_ranks, replicate_or_shard
from dino.data import Batch, collate
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.training import run as run_module
from dino.training.config import TrainConfig
from dino.training.optimizer import build_optimizer, clip_gradients
from dino.training.precision import Precision
from dino.training.replay import Replay
from dino.training.step import Step, StepReport, compiled
from dino.training.train import train
from dino_kernels import Match, PackedTargets
from dino_kernels.nn import MSDeformAttn
from tests.dino.training.train_toys import TINY, quick_runs, run_ranks, toy_config, weights, write_rectangles

ALONE = Ranks(0, 1, torch.device("cpu"))
SIZES = [((64, 50), (40, 64)), ((90, 64), (60, 33)), ((64, 128), (128, 64)), ((30, 100), (64, 70)), ((128, 128),) * 2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_runs(monkeypatch)


def batch_of(sizes: tuple[tuple[int, int], ...], *counts: int, seed: int = 0, pad_to: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    samples: list[tuple[Tensor | None, dict[str, Any]]] = []
    for i, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
        target = {"boxes": boxes, "labels": torch.randint(2, (count,), generator=generator), "image_id": i}
        image = torch.randn(3, height, width, generator=generator)
        samples.append((image, target | {"size_hw": torch.tensor([height, width])}))
    return collate(samples, pad_to=pad_to, fixed_capacity=True)


def tiny_model() -> DINO:
    torch.manual_seed(1)
    return DINO(dataclasses.replace(TINY, num_classes=2, num_denoising=50)).train()


def step_of(model: DINO, *, amp: str = "off", **options: Any) -> Step:
    optimizer = build_optimizer(model, TrainConfig(Path(), lr=1e-3, static=options.get("static", False)))
    return Step(model, SetCriterion(model.config), optimizer, Precision(amp, "cpu"), ALONE, clip=0.1, **options)


def reports_of(step: Step, batches: list[list[Batch]]) -> list[StepReport]:
    reports: list[StepReport] = []
    for window in batches:
        step(window, done=reports.append)
    last = step.finish()
    assert last is not None
    return [*reports, last]


class Operations(TorchDispatchMode):
    """Records operators, shapes and numbers: everything that a CUDA graph would repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.dtype), (args, kwargs))
        if not func.name().startswith("profiler"):
            self.seen.append(f"{func.name()} {shapes}")
        return func(*args, **kwargs or {})

    def record(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Call a function and record what it does."""
        with self:
            return function(*tensors)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_no_operation_of_what_is_replayed_depends_on_data(amp: str) -> None:
    step = step_of(tiny_model(), amp=amp, static=True)
    batches = [
        batch_of(SIZES[2], 3, 1),
        batch_of(SIZES[2], 0, 0, seed=1),
        batch_of(((100, 100), (128, 128)), 60, 2, seed=2),
        batch_of(SIZES[4], 9, 100, seed=3),
    ]
    step([batches[0]])  # makes gradients and the optimiser's state
    replays = step._replayed_passes, step._replayed_update
    functions = [replay.function for replay in replays]
    recorded = []
    for batch in batches:
        operations = Operations()
        for replay, function in zip(replays, functions, strict=True):
            replay.function = functools.partial(operations.record, function)
        step([batch])
        recorded.append(operations.seen)
    assert len(recorded[0]) > 500
    assert all(seen == recorded[0] for seen in recorded[1:])
    assert [replay.shapes for replay in replays] == [1, 1]


class Moves(TorchDispatchMode):
    """Records operators that read or make tensors on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        tree_map_only(Tensor, lambda tensor: self._note(func, tensor), (args, kwargs, result))
        return result

    def _note(self, func: Any, tensor: Tensor) -> None:
        if tensor.device.type == "cpu":
            self.found.append(func.name())


def test_nothing_moves_between_host_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data stand for those on a GPU. Reading a number of theirs raises."""

    def matched(logits: list[Tensor], _: list[Tensor], targets: PackedTargets, **__: Any) -> Match:
        query = targets.labels.new_zeros(sum(len(source) for source in logits), len(targets))
        return Match(query, query, None, None, None)

    monkeypatch.setattr(dino_kernels, "hungarian_match", matched)
    model, batch = tiny_model().to("meta"), batch_of(SIZES[2], 3, 1).to("meta")
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = "reference"
    optimizer = torch.optim.SGD(model.parameters(), fused=False)
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    ranks = Ranks(0, 1, torch.device("meta"))
    step = Step(model, SetCriterion(model.config), optimizer, Precision("bf16", "cpu"), ranks, clip=0.1, static=True)
    truth = batch.targets
    assert truth.boxes_cxcywh is not None
    with Moves() as moves:
        step._passes_of_tensors(
            batch.images, batch.mask, truth.labels, truth.boxes_cxcywh, truth.offsets, torch.ones((), device="meta")
        )
        clip_gradients(model, 0.1)
    assert moves.found == []
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_static_steps_are_the_plain_ones(accumulate: int) -> None:
    sizes = [SIZES[i % len(SIZES)] for i in range(6 * accumulate)]
    each = [batch_of(size, i % 4, 2, seed=i, pad_to=128) for i, size in enumerate(sizes)]
    batches = [each[i : i + accumulate] for i in range(0, len(each), accumulate)]
    first, second = tiny_model(), tiny_model()
    torch.manual_seed(2)
    plain = reports_of(step_of(first), batches)
    torch.manual_seed(2)
    static = reports_of(step := step_of(second, static=True), batches)
    assert step._replayed_passes.shapes == 1
    for one, other in zip(plain, static, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4) and other.images == one.images
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_static_step_that_is_not_finite_is_blamed_on_its_images_and_changes_nothing() -> None:
    model = tiny_model()
    step, good, bad = step_of(model, static=True), batch_of(SIZES[2], 3, 1), batch_of(SIZES[2], 1, 1)
    bad.images[0, :, 10, 10] = torch.nan
    before = copy.deepcopy(model.state_dict())
    step([bad])
    reports: list[tuple[StepReport, bool]] = []
    step([good], done=lambda report: reports.append((report, same(model, before))))
    ((report, unchanged),) = reports
    assert report.skipped is not None and "loss_ce" in report.skipped.terms and report.skipped.image_ids == (0, 1)
    assert unchanged
    last = step.finish()
    assert last is not None and last.skipped is None and not same(model, before)


def same(model: DINO, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_results_of_a_replay_outlive_the_next_one() -> None:
    replay = Replay(lambda x, y: (x + y, x * y))
    inputs = [(torch.randn(3), torch.randn(3)) for _ in range(3)] + [(torch.randn(2), torch.randn(2))]
    results = [replay(*each) for each in inputs]
    for (x, y), (total, product) in zip(inputs, results, strict=True):
        assert torch.equal(total, x + y) and torch.equal(product, x * y)
    assert replay.shapes == 2


@pytest.mark.compiler
def test_compiled_steps_are_the_plain_ones_and_compile_a_few_times_only() -> None:
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    batches = [[batch_of(SIZES[i % len(SIZES)], i % 5, 2, seed=i)] for i in range(100)]
    first, second = tiny_model(), tiny_model()
    torch.manual_seed(2)
    plain = reports_of(step_of(first), batches)
    counted: Any = counting
    model, criterion = compiled(second, counted), compiled(SetCriterion(second.config), counted)
    optimizer = build_optimizer(second, TrainConfig(Path(), lr=1e-3))
    step = Step(model, criterion, optimizer, Precision("off", "cpu"), ALONE, clip=0.1, compiled=True)
    torch.manual_seed(2)
    some = reports_of(step, batches[:10])
    after_ten = len(graphs)
    assert after_ten == 2  # model and criterion, for all sizes
    found = reports_of(step, batches[10:])
    assert len(graphs) == after_ten
    for one, other in zip(plain, [*some, *found], strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-3)


def compare_compiled_steps_of_two_processes() -> None:
    with joined_ranks("cpu") as ranks:
        seeds = range(10 * ranks.rank, 10 * ranks.rank + 4)
        batches = [[batch_of(SIZES[seed % 5], seed % 4, 2, seed=seed)] * 2 for seed in seeds]
        losses = []
        for is_compiled in (False, True):
            model = called = tiny_model()
            criterion = SetCriterion(model.config)
            if is_compiled:
                called, criterion = compiled(model, "eager"), compiled(criterion, "eager")
            optimizer, module = build_optimizer(model, TrainConfig(Path())), replicate_or_shard(called, "ddp", ranks)
            step = Step(module, criterion, optimizer, Precision("off", "cpu"), ranks, clip=0.1, compiled=is_compiled)
            torch.manual_seed(ranks.rank)
            losses.append([report.losses["loss"] for report in reports_of(step, batches)])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.compiler
def test_compiled_steps_of_two_processes(everything: bool) -> None:
    if not everything:
        pytest.skip("compiling in two processes takes half a minute: in a long run")
    run_ranks(2, compare_compiled_steps_of_two_processes)


@pytest.mark.parametrize("options", [{"static": True}, {"static": True, "amp": "bf16", "accumulate": 2}], ids=str)
def test_a_static_run_trains_and_resumes(tmp_path: Path, options: dict[str, Any]) -> None:
    data = write_rectangles(tmp_path / "data")
    model = dataclasses.replace(TINY, num_denoising=50)
    config = toy_config(data, tmp_path / "whole", model=model, pad_to=64, **options)
    train(config, quiet=True)
    half = dataclasses.replace(config, output=tmp_path / "half")
    train(dataclasses.replace(half, max_steps=3 // config.accumulate, checkpoint_every=1), quiet=True)
    result = train(dataclasses.replace(half, resume=True), quiet=True)
    assert result.final_model is not None
    whole, resumed = weights(tmp_path / "whole" / "final"), weights(result.final_model)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_options_for_one_process_are_refused_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(0, 2, torch.device("cpu"))
    for options, message in (
        ({"static": True}, "static is for one process, got 2 processes with ddp"),
        ({"compile": True, "strategy": "fsdp2"}, "compile is for one process, or strategy ddp, got 2 .* fsdp2"),
    ):
        config = toy_config(tmp_path, tmp_path / "run", **options)
        with pytest.raises(ValueError, match=message):
            run_module.assemble(config, several, None, None, resumed=False)  # type: ignore[arg-type]
