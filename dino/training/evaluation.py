"""Evaluate the model, and its averaged weights, in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from dino.common.rng import rng_state, set_rng_state
from dino.data import Batch, Loader, build_loader
from dino.evaluation.coco_metrics import CocoMetrics
from dino.evaluation.evaluate import evaluate
from dino.training.checkpoint import save_named
from dino.training.run import Run
from dino.training.signals import StopRequest
from dino.training.step import TrainingError


class EvaluationStopped(Exception):
    """A signal interrupted an evaluation; the resumed run repeats it."""


def validate(run: Run, stop: StopRequest) -> dict[str, float]:
    """Evaluate on the validation images, add the result to the run's state, and save the model if it is the best.

    Collective. Does not change the training state or its random generators.

    Returns:
        Step, epoch and the twelve COCO metrics; those of averaged weights with the suffix _ema.

    Raises:
        EvaluationStopped: `stop` was requested, in a run of one process.
    """
    before = rng_state(run.ranks.device)
    state = run.state
    entry: dict[str, float] = {"step": state.step, "epoch": run.fraction_of_epochs}
    try:
        for suffix in ("", "_ema") if run.ema is not None else ("",):
            with run.ema.in_model() if run.ema is not None and suffix else nullcontext():
                metrics = _evaluate(run, stop).summary()
                entry |= {f"{name}{suffix}": value for name, value in metrics.items()}
                if state.best is None or _ap(metrics) >= _ap(state.best):
                    best = {**metrics, "step": state.step, "epoch": entry["epoch"], "averaged": bool(suffix)}
                    run.attempt("saving the best model", lambda: _keep(run, best))  # noqa: B023
    finally:
        set_rng_state(*before, run.ranks.device)
    state.history.append(entry)
    state.evaluated_step = state.step
    return entry


def _keep(run: Run, best: dict[str, Any]) -> None:
    save_named(run, "best", AP=best["AP"])
    run.state.best = best


def _evaluate(run: Run, stop: StopRequest) -> CocoMetrics:
    data, ranks = run.data.valid, run.ranks
    assert data is not None  # a run that evaluates has read it
    loader = build_loader(
        data,
        1,  # padding in larger batches would change the metrics
        train=False,
        workers=run.config.workers,
        rank=ranks.rank,
        world_size=ranks.size,
        pin_memory=ranks.device.type == "cuda",
    )
    count = -(-len(data) // ranks.size)
    with loader:
        # One of several processes cannot leave: the others would wait for its results.
        batches = _until_stopped(loader, stop) if ranks.size == 1 else _padded(loader, count)
        try:
            return evaluate(
                run.model,
                run.console.bar(batches, "evaluate", "images", total=count, leave=False),
                data.index,
                run.data.categories,
                device=ranks.device,
                amp=run.config.amp,
                progress=False,
            )
        finally:
            run.leave_out("validation", loader.problems)


def _until_stopped(loader: Loader, stop: StopRequest) -> Iterator[Batch]:
    batch: Batch | None = None
    for batch in loader:
        if stop.signal is not None:
            raise EvaluationStopped
        yield batch
    if batch is None:
        raise TrainingError(f"no validation image can be read. The first: {loader.problems[0]}")


def _padded(loader: Loader, count: int) -> Iterator[Batch]:
    """Yield `count` batches on every process, repeating the last one; `evaluate` counts repeated images once.

    Sharded layers exchange parameters in each forward pass, so that all processes need equally many.
    """
    batch: Batch | None = None
    for batch in loader:
        count -= 1
        yield batch
    if batch is None:
        raise TrainingError(
            "a process has no validation image that can be read. Use fewer processes, or mend the images: "
            f"{loader.problems[0] if loader.problems else 'there are fewer images than processes'}"
        )
    for _ in range(count):
        yield batch


def _ap(metrics: dict[str, Any]) -> float:
    return -1.0 if math.isnan(metrics["AP"]) else metrics["AP"]
