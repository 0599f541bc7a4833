"""Optimisation: groups, schedule, accumulation, mixed precision, moving average, and steps that are not finite."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dino.common.distributed import Ranks, joined_ranks, replicate_or_shard
from dino.data import Batch, collate
from dino.model.config import PRESETS
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.training.ema import MovingAverage
from dino.training.log import read_log
from dino.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rates
from dino.training.precision import Precision
from dino.training.run_folder import RunFolder
from dino.training.step import LOSS_PARTS, Step, StepReport, loss_parts
from dino.training.train import TrainConfig, TrainingError, train
from dino_kernels import PackedTargets
from tests.dino.training.train_toys import TINY, quick_runs, run_ranks, toy_config, weights, write_rectangles
from tests.dino.waits import Assignments, Waits

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_runs(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles")


def samples_of(*box_counts: int, first_id: int = 0) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Draw 64-pixel images of noise with so many boxes each."""
    torch.manual_seed(0)
    targets: list[dict[str, Any]] = []
    for i, count in enumerate(box_counts):
        boxes = torch.rand(count, 4) * 0.3 + 0.3
        labels = torch.randint(2, (count,))
        targets.append({"boxes": boxes, "labels": labels, "image_id": first_id + i, "size_hw": torch.tensor([64, 64])})
    return list(zip(torch.randn(len(box_counts), 3, 64, 64), targets, strict=True))


def batch_of(*box_counts: int, first_id: int = 0) -> Batch:
    return collate(samples_of(*box_counts, first_id=first_id))


def step_of(
    model: DINO, *, clip: float = math.inf, amp: str = "off", ranks: Ranks = ALONE
) -> Callable[..., StepReport]:
    """Return a step of plain gradient descent at rate 1 that waits for its results.

    The change of a parameter is its gradient.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    module = replicate_or_shard(model.train(), "ddp", ranks)
    step = Step(module, SetCriterion(model.config), optimizer, Precision(amp, "cpu"), ranks, clip)

    def take(batches: list[Batch], flags: Callable[[], Sequence[bool]] = tuple) -> StepReport:
        step(batches, flags)
        report = step.finish()
        assert report is not None and step.finish() is None
        return report

    return take


def tiny_model(**changes: Any) -> DINO:
    torch.manual_seed(1)
    return DINO(dataclasses.replace(TINY, num_classes=2, denoising="off", **changes))


def change_in_a_step(model: DINO, *batches: Batch) -> torch.Tensor:
    moved = copy.deepcopy(model)
    step_of(moved)(batches)
    pairs = zip(model.parameters(), moved.parameters(), strict=True)
    return torch.cat([(b - a).detach().flatten() for a, b in pairs])


def test_accumulated_batches_have_the_gradient_of_the_one_large_batch():
    model, samples = tiny_model(), samples_of(1, 4, 2, 0)
    expected = change_in_a_step(model, collate(samples))
    actual = change_in_a_step(model, collate(samples[:2]), collate(samples[2:]))
    assert expected.norm() > 1
    assert (actual - expected).norm() < 1e-4 * expected.norm()
    # The usual average of the parts' gradients differs if their numbers of boxes do.
    parts = [change_in_a_step(model, collate(part)) for part in (samples[:2], samples[2:])]
    assert (sum(parts) / 2 - expected).norm() > 0.05 * expected.norm()


def test_the_reported_loss_is_that_of_the_large_batch():
    model, samples = tiny_model(), samples_of(1, 4, 2, 0)
    whole = collate(samples)
    once = step_of(copy.deepcopy(model))([whole])
    in_parts = step_of(copy.deepcopy(model))([collate(samples[:2]), collate(samples[2:])])
    assert set(once.losses) == set(LOSS_PARTS) and once.images == in_parts.images == 4
    assert once.losses == pytest.approx(in_parts.losses, rel=1e-4)
    assert once.norm == pytest.approx(in_parts.norm, rel=1e-4)
    criterion = SetCriterion(model.config)
    losses = criterion(model.train()(whole.images, whole.mask, whole.targets), whole.targets)
    assert once.losses["loss"] == pytest.approx(criterion.weighted_total(losses).item(), rel=1e-5)


def test_the_reported_parts_are_those_of_the_official_names():
    torch.manual_seed(1)
    model, batch = DINO(dataclasses.replace(TINY, num_classes=2)).train(), batch_of(1, 4)
    criterion = SetCriterion(model.config)
    losses = criterion(model(batch.images, batch.mask, batch.targets), batch.targets)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    expected = {kind: losses[kind].item() for kind in weights}
    for part, places in (("loss_encoder", ("_interm",)), ("loss_denoising", ("_dn_0", "_dn"))):
        expected[part] = sum(w * losses[f"{kind}{place}"].item() for kind, w in weights.items() for place in places)
    expected["loss"] = criterion.weighted_total(losses).item()
    reported = loss_parts(losses, criterion.weighted(losses)).tolist()
    assert dict(zip(LOSS_PARTS, reported, strict=True)) == pytest.approx(expected, rel=1e-6)
    static = DINO(dataclasses.replace(TINY, num_classes=2, query_selection="static", denoising="off"))
    assert step_of(static)([batch]).losses["loss_encoder"] == 0


def test_targets_are_packed_before_the_step(monkeypatch):
    torch.manual_seed(1)
    model = DINO(dataclasses.replace(TINY, num_classes=2))  # with denoising, which uses them too
    batches = [batch_of(1, 4), batch_of(2, 0, 3)]
    monkeypatch.delattr(PackedTargets, "pack")
    assert step_of(model)(batches).skipped is None


def waits_of_a_step(step: Step, batches: list[Batch]) -> None:
    """Raise if a step waits for anything but the results of the step before."""
    step(batches)
    assert step._pending is not None
    earlier, reports, lists = step._pending.values, [], []
    tolist = torch.Tensor.tolist
    with Waits() as waits, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor) or tolist(tensor))
        step(batches, lambda: (True, False), reports.append)
    assert waits.found == []
    assert [each is earlier for each in lists] == [True] * len(reports) == [True]
    last = step.finish()
    assert last is not None and last.skipped is None and last.flags == (True, False)
    with Assignments() as assignments:
        step(batches)
    assert assignments.found == []


def waits_of_steps(ranks: Ranks, strategy: Any) -> None:
    samples = samples_of(1, 4, 2, 0)
    for amp in ("off", "bf16", "fp16"):
        module = replicate_or_shard(tiny_model().train(), strategy, ranks)
        optimizer, precision = build_optimizer(module, TrainConfig(Path())), Precision(amp, "cpu")
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=amp == "fp16")
        step = Step(
            module, SetCriterion(dataclasses.replace(TINY, num_classes=2)), optimizer, precision, ranks, clip=0.1
        )
        for accumulate in (1, 2):
            waits_of_a_step(step, [collate(samples)] * accumulate)
        if ranks.size == 1:
            step = Step(module, step.criterion, optimizer, precision, ranks, clip=0.1, static=True)
            waits_of_a_step(step, [collate(samples, fixed_capacity=True)])


def waits_of_steps_of_two_processes() -> None:
    with joined_ranks("cpu") as ranks:
        for strategy in ("ddp", "fsdp2"):
            waits_of_steps(ranks, strategy)


def test_a_step_waits_for_nothing():
    waits_of_steps(ALONE, "ddp")


def test_a_step_of_two_processes_waits_for_nothing():
    run_ranks(2, waits_of_steps_of_two_processes)


def compare_a_step_of_two_processes_with_one() -> None:
    samples, model = samples_of(1, 4, 2, 0), tiny_model()
    expected = step_of(copy.deepcopy(model))([collate(samples)])
    with joined_ranks("cpu") as ranks:
        own = collate(samples[2 * ranks.rank : 2 * ranks.rank + 2])
        report = step_of(model, ranks=ranks)([own], lambda: (ranks.rank == 1, False))
    assert report.losses == pytest.approx(expected.losses, rel=1e-4)
    assert report.norm == pytest.approx(expected.norm, rel=1e-4)
    assert report.images == 4 and report.flags == (True, False)


def test_a_step_of_two_processes_has_the_losses_of_one():
    run_ranks(2, compare_a_step_of_two_processes_with_one)


def test_an_optimizer_that_cannot_drop_a_step_on_the_device_is_refused():
    model = tiny_model()
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="optimizer must be fused, got SGD"):
        Step(model, SetCriterion(model.config), plain, Precision("off", "cpu"), ALONE, 1.0)


def test_the_gradient_is_clipped_to_the_given_norm():
    model = tiny_model()
    before = copy.deepcopy(model)
    report = step_of(model, clip=0.1)([batch_of(2, 1)])
    pairs = zip(before.parameters(), model.parameters(), strict=True)
    moved = torch.stack([(b - a).detach().norm() for a, b in pairs]).norm().item()
    assert report.norm > 1 and moved == pytest.approx(0.1, rel=1e-3)


def test_a_step_without_any_box_trains_every_parameter_that_it_can():
    report = step_of(tiny_model())([batch_of(0, 0)])
    assert report.skipped is None
    assert report.losses["loss_bbox"] == 0 and report.losses["loss_ce"] > 0


def test_a_broken_batch_is_skipped_and_its_losses_and_images_are_named():
    model = tiny_model()
    step, good, bad = step_of(model), batch_of(2, 1, first_id=10), batch_of(1, 1, first_id=20)
    bad.images[0, 0, 5, 5] = math.nan
    before = copy.deepcopy(model.state_dict())
    report = step([good, bad])
    assert report.skipped is not None
    assert {"loss_ce", "loss_giou_interm"} <= set(report.skipped.terms)
    assert not any(name.startswith(("loss_xy", "class_error")) for name in report.skipped.terms)
    assert report.skipped.image_ids == (20, 21)
    assert "and 5 more not finite" in str(report.skipped) and "images 20, 21" in str(report.skipped)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert step([good]).skipped is None
    assert not torch.equal(before["decoder.norm.bias"], model.state_dict()["decoder.norm.bias"])


def test_a_broken_gradient_is_skipped_although_all_losses_are_finite():
    model = tiny_model()
    model.decoder.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    report = step_of(model)([batch_of(2, 1, first_id=7)])
    assert report.skipped is not None and report.skipped.terms == ()
    assert report.skipped.image_ids == (7, 8) and math.isfinite(report.losses["loss"])
    assert str(report.skipped).startswith("gradient not finite, though all losses are")


def test_many_broken_steps_in_a_row_end_the_run_with_advice(data, tmp_path):
    config = toy_config(data, tmp_path / "run", epochs=6, lr=1e30, clip=math.inf, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"20 steps in a row .* a lower --lr, or --warmup-steps 1000"):
        train(config, quiet=True)
    last = RunFolder(tmp_path / "run").last_complete()
    assert last is not None and last.name == "step-00000003", "checkpoints were displaced by worthless ones"
    assert read_log(tmp_path / "run/log.csv")[-1]["skipped"] >= 19


def test_out_of_memory_names_what_helps_and_the_last_checkpoint(data, tmp_path, monkeypatch):
    forward, calls = DINO.forward, []

    def full_at_the_third(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(self, *arguments, **options)

    monkeypatch.setattr(DINO, "forward", full_at_the_third)
    with pytest.raises(TrainingError) as error:
        train(toy_config(data, tmp_path / "run", checkpoint_every=1), quiet=True)
    text = str(error.value)
    assert "out of memory in step 3: images 2x3x" in text
    for option in ("--batch-size 1 --accumulate 2", "--model.gradient-checkpointing", "--amp bf16", "--resume"):
        assert option in text
    assert str(tmp_path / "run/checkpoints/step-00000002") in text


def test_other_errors_of_the_model_keep_their_type(data, tmp_path, monkeypatch):
    def broken(self, *arguments, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(DINO, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match") as error:
        train(toy_config(data, tmp_path / "run"), quiet=True)
    assert error.type is RuntimeError


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_float32(amp):
    model, batch = tiny_model(), batch_of(2, 1)
    exact, mixed = (step_of(copy.deepcopy(model), amp=kind)([batch]) for kind in ("off", amp))
    assert exact.losses["loss"] != mixed.losses["loss"], "autocast did nothing"
    assert mixed.losses["loss"] == pytest.approx(exact.losses["loss"], rel=0.05)


def test_fp16_lowers_its_loss_scale_after_an_overflow_and_resumes_with_it(data, tmp_path):
    config = toy_config(data, tmp_path / "run", max_steps=2, amp="fp16")
    result = train(config, quiet=True)
    scaler = json.loads((tmp_path / "run/last/state.json").read_text())["scaler"]
    assert result.skipped_steps > 0, "the usual first scale of 65536 is too high for this model"
    assert scaler["scale"] == 65536 / 2**result.skipped_steps
    train(dataclasses.replace(config, max_steps=3, resume=True), quiet=True)
    resumed = json.loads((tmp_path / "run/last/state.json").read_text())
    assert resumed["scaler"]["scale"] == 65536 / 2 ** resumed["run"]["skipped"] <= scaler["scale"]


def test_parameter_groups_are_the_official_ones():
    with torch.device("meta"):
        model = DINO(PRESETS["dino_4scale_r50"])
    optimizer = build_optimizer(model, TrainConfig(data=Path()))
    sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    assert sizes == [23_438_270, 23_232_512]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4]
    set_learning_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5, 1e-6])


def test_rates_drop_after_the_given_epochs_and_rise_in_the_warm_up():
    assert [learning_rate_factor(epoch, 1000, (11,)) for epoch in (0, 10, 11)] == pytest.approx([1, 1, 0.1])
    assert learning_rate_factor(30, 1000, (20, 30)) == pytest.approx(0.01)
    assert [learning_rate_factor(0, step, (11,), 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_a_run_trains_at_the_scheduled_rates(data, tmp_path):
    config = toy_config(data, tmp_path / "run", epochs=2, lr_drop_epochs=(1,), warmup_steps=2, lr=1e-3)
    train(config, quiet=True)
    rates = [row["lr"] for row in read_log(tmp_path / "run/log.csv")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4])


def test_the_average_follows_its_formula_and_leaves_the_weights_as_they_were():
    model = torch.nn.Linear(3, 2)
    average = MovingAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for n in range(1, 4):
        with torch.no_grad():
            model.weight.add_(n)
        average.update()
        keep = 0.5 * (1 - math.exp(-n / 2000))
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)
    before = model.weight.detach().clone()
    with average.in_model():
        torch.testing.assert_close(model.weight.detach(), expected)
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_averaged_weights_are_saved_as_a_separate_model(data, tmp_path):
    result = train(toy_config(data, tmp_path / "run", epochs=1, ema_decay=0.99), quiet=True)
    assert result.final_model is not None and result.final_average is not None
    plain, averaged = weights(result.final_model), weights(result.final_average)
    assert plain.keys() == averaged.keys()
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_ten_epochs_lower_the_loss_on_rectangles(data, tmp_path):
    train(toy_config(data, tmp_path / "run", epochs=10, lr_drop_epochs=(10,)), quiet=True)
    losses = [row["loss"] for row in read_log(tmp_path / "run/log.csv")]
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])
