"""Measuring the model, and its averaged weights, in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from dino.common.rng import rng_state, set_rng_state
from dino.data import Batch, Loader, build_loader
from dino.evaluation.evaluate import evaluate
from dino.training.checkpoint import save_weights, whole_weights
from dino.training.run import Run
from dino.training.signals import StopRequest
from dino.training.step import TrainingError


class EvaluationStopped(Exception):
    """A signal came in the middle of an evaluation, which the resumed run repeats."""


def measure(run: Run, stop: StopRequest) -> dict[str, float]:
    """Evaluate, note the result in the run's state, and keep the model if it is the best so far.

    All processes must ask; training goes on as if it had not happened.

    Returns:
        Step, epoch and COCO's twelve numbers; those of averaged weights with the suffix _ema.

    Raises:
        EvaluationStopped: `stop` was requested of a run of one process.
    """
    before = rng_state(run.ranks.device)
    entry: dict[str, float] = {"step": run.state.step, "epoch": run.fraction_of_epochs}
    for suffix in ("", "_ema") if run.ema is not None else ("",):
        with run.ema.in_model() if run.ema is not None and suffix else nullcontext():
            loader = build_loader(
                run.data.valid,
                1,  # more images in a batch would change the numbers by padding
                train=False,
                workers=run.config.workers,
                rank=run.ranks.rank,
                world_size=run.ranks.size,
                pin_memory=run.ranks.device.type == "cuda",
            )
            metrics = evaluate(
                run.model,
                ValidationBatches(loader, len(run.data.valid), run, stop),
                run.data.valid.index,
                run.data.categories,
                device=run.ranks.device,
                amp=run.config.amp,
                progress=False,
            )
            numbers = metrics.numbers()
            entry |= {f"{name}{suffix}": value for name, value in numbers.items()}
            if run.state.best is None or _ap(numbers) >= _ap(run.state.best):
                run.state.best = {**numbers, "step": run.state.step, "epoch": entry["epoch"], "averaged": bool(suffix)}
                save_named(run, "best", AP=numbers["AP"])
    run.state.history.append(entry)
    run.state.evaluated_step = run.state.step
    set_rng_state(before, run.ranks.device)
    return entry


def save_named(run: Run, name: str, **extra: Any) -> None:
    """Write the model as it is now to a folder of the run; all processes must ask."""
    weights = whole_weights(run)
    if run.ranks.first:
        save_weights(run, run.folder.path / name, weights, step=run.state.step, epoch=run.fraction_of_epochs, **extra)


class ValidationBatches:
    """A process's validation batches, and its last one again where other processes have more.

    Sharded layers exchange parameters in each forward pass, so that all processes need equally many. An image that
    comes twice counts once.
    """

    def __init__(self, loader: Loader, num_images: int, run: Run, stop: StopRequest) -> None:
        ranks = run.ranks.size
        self._console = run.console
        self._loader = loader
        self._length = -(-num_images // ranks) if ranks > 1 else len(loader)
        # One of several processes cannot leave: the others would wait for its results.
        self._stop = stop if ranks == 1 else StopRequest()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        batch: Batch | None = None
        count = 0
        for batch in self._loader:
            if self._stop.signal is not None:
                raise EvaluationStopped
            count += 1
            self._console.status(lambda count=count: f"evaluating: {count} of {self._length} batches")
            yield batch
        if batch is None:
            raise TrainingError("evaluation: a process has no validation image that can be read; use fewer processes")
        for _ in range(self._length - count):
            yield batch


def _ap(numbers: dict[str, Any]) -> float:
    return -1.0 if math.isnan(numbers["AP"]) else numbers["AP"]
