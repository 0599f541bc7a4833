"""A training step on a GPU never synchronises with it, and its report is that of a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino.common.distributed import Ranks
from dino.data import collate, to_device
from dino.model.criterion import SetCriterion
from dino.training.optimizer import build_optimizer, set_learning_rates
from dino.training.precision import Precision
from dino.training.step import Step, StepReport
from dino.training.train import TrainConfig
from tests.dino.training import test_static
from tests.dino.training.test_step import samples_of, tiny_model


def without_overflow(amp: str, device: str) -> Precision:
    """The first scale of fp16 is so large that steps overflow; the reason for dropping one is read at once."""
    precision = Precision(amp, device)
    precision.scaler = torch.amp.GradScaler(device, init_scale=1.0, enabled=amp == "fp16")
    return precision


# Named, so that --gpu chooses these tests.
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_does_not_synchronise(device: str, amp: str, waiting_is_an_error: Callable[[], None], tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("cuda: no GPU")
    samples, model, reports = samples_of(1, 4, 2, 0), tiny_model().train(), {}
    for place in ("cpu", device):
        moved = copy.deepcopy(model).to(place)
        ranks = Ranks(0, 1, torch.device(place))
        optimizer = build_optimizer(moved, TrainConfig(tmp_path))
        step = Step(moved, SetCriterion(moved.config), optimizer, without_overflow(amp, place), ranks, clip=0.1)
        loaded = [collate(samples).pin_memory() if place == device else collate(samples)] * 2
        found: list[StepReport] = []
        step(list(to_device(loaded, ranks.device)))
        if place == device:
            torch.cuda.synchronize()
            waiting_is_an_error()
        step(list(to_device(loaded, ranks.device)), done=found.append)
        torch.cuda.set_sync_debug_mode("default")
        last = step.finish()
        assert last is not None
        reports[place] = [*found, last]
    if amp == "off":
        for ours, theirs in zip(reports[device], reports["cpu"], strict=True):
            assert ours.losses == pytest.approx(theirs.losses, rel=1e-3) and ours.norm == pytest.approx(
                theirs.norm, 1e-2
            )


@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_captured_steps_are_the_plain_ones_and_do_not_synchronise(
    device: str, amp: str, waiting_is_an_error: Callable[[], None]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("cuda: no GPU")
    ranks, model = Ranks(0, 1, torch.device(device)), test_static.tiny_model().to(device)
    sizes = [test_static.SIZES[i % 3] for i in range(12)]
    batches = [test_static.batch_of(size, i % 4, 2, seed=i).pin_memory() for i, size in enumerate(sizes)]
    reports: dict[bool, list[StepReport]] = {}
    for static in (False, True):
        moved, found = copy.deepcopy(model), []
        optimizer = build_optimizer(moved, TrainConfig(Path(), lr=1e-4, static=static))
        # Noise differs between captured and plain steps: none is drawn.
        moved.denoising = None
        precision = without_overflow(amp, device)
        step = Step(moved, SetCriterion(moved.config), optimizer, precision, ranks, clip=0.1, static=static)
        for number, batch in enumerate(batches):
            if number == 2 * len(set(sizes)):  # each size has been seen twice, and captured
                torch.cuda.synchronize()
                waiting_is_an_error()
            set_learning_rates(optimizer, 0.1 if number > 8 else 1.0)  # read by graphs
            step([batch], done=found.append)
        torch.cuda.set_sync_debug_mode("default")
        last = step.finish()
        assert last is not None and last.skipped is None
        reports[static] = [*found, last]
        assert step._replayed_passes.shapes == (len({batch.images.shape for batch in batches}) if static else 0)
    for ours, theirs in zip(reports[True], reports[False], strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3 if amp == "off" else 5e-2)
