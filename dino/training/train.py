"""Training: `train(TrainConfig(data="coco"))`, or `python -m dino train --data coco`."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.common.distributed import Ranks, joined_ranks
from dino.common.files import write_text_whole
from dino.common.rng import numerics
from dino.training import report
from dino.training.checkpoint import go_on_from
from dino.training.config import TrainConfig
from dino.training.console import Console
from dino.training.curves import matplotlib_is_installed
from dino.training.evaluation import save_named
from dino.training.log import Log, tensorboard_is_installed
from dino.training.loop import Loop
from dino.training.run import Run, assemble
from dino.training.run_folder import RunFolder
from dino.training.signals import StopRequest
from dino.training.step import TrainingError

__all__ = ["TrainConfig", "TrainResult", "TrainingError", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    folder: Path
    """The run's folder: checkpoints, log.csv, curves.png."""
    step: int
    """Optimisation steps taken."""
    epochs: int
    """Epochs completed."""
    history: list[dict[str, float]]
    """For each evaluation the step, the epoch and COCO's twelve numbers; those of averaged weights end in _ema."""
    best: dict[str, Any] | None
    """The numbers of the best model, its step and epoch, and whether it has averaged weights; None before any."""
    best_model: Path | None
    """Folder of the model with the highest AP."""
    final_model: Path | None
    """Folder of the model after the last step; None if the run was stopped before."""
    final_average: Path | None
    """Folder of the averaged weights after the last step."""
    last_checkpoint: Path | None
    """What the run would go on from."""
    skipped_steps: int
    """Steps whose loss or gradient was not finite."""
    stopped_by: str | None
    """The signal that stopped the run before its end."""


def train(config: TrainConfig, *, quiet: bool = False) -> TrainResult:
    """Train a detector. Under torchrun every process calls this.

    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; `resume` goes on from there as if nothing
    had happened. A run that is already at its end returns at once.

    Args:
        config: the run.
        quiet: print nothing; otherwise the first process prints its progress.

    Raises:
        ValueError: the output folder holds another run, or fewer images than one step takes.
        DatasetError, CheckpointError: data or weights that cannot be used.
        TrainingError: the run cannot go on: out of memory, no finite step any more, no room for a checkpoint.
    """
    with numerics(deterministic=config.deterministic, tf32=config.tf32), joined_ranks(config.device) as ranks:
        console = Console(sys.stdout if ranks.first and not quiet else None)
        folder = RunFolder(config.output)
        checkpoint = _prepare(folder, config, ranks)
        run = assemble(config, ranks, console, folder, resumed=checkpoint is not None)
        if checkpoint is not None:
            go_on_from(run, checkpoint)
            if ranks.first:
                folder.keep_last(config.keep_checkpoints)  # the run may have been killed before it could
        console.say(report.greeting(run))
        if checkpoint is not None:
            changes = report.changes(run, folder.state(checkpoint)["config"])
            console.say("\n".join([f"going on from {checkpoint}", *changes]))
        elif config.resume:
            console.say("there is no complete checkpoint to resume from: starting anew")
        log = _open_log(run) if ranks.first else None
        try:
            # Not earlier: until the first step, Ctrl-C loses nothing and ends the run at once.
            with StopRequest() as stop:
                loop = Loop(run, log, stop)
                loop()
            loop.draw()
        finally:
            if log is not None:
                log.close()
        if loop.stopped is not None:
            console.say(report.stopped(run, loop.stopped))
        else:
            _save_final(run)
            console.say(report.closing(run))
        return _result(run, loop.stopped)


def _prepare(folder: RunFolder, config: TrainConfig, ranks: Ranks) -> Path | None:
    """Make the folder ready on the first process; the outcome, or the error, is the same on all."""
    outcome: Path | ValueError | OSError | None = None
    if ranks.first:
        try:
            outcome = folder.prepare(resume=config.resume, overwrite=config.overwrite)
        except (ValueError, OSError) as error:
            outcome = error
    outcome = ranks.from_first(outcome)
    if isinstance(outcome, ValueError | OSError):
        raise outcome
    return outcome


def _open_log(run: Run) -> Log:
    """Write config.json, now that the run is known to be possible, and open log.csv."""
    config, state = run.config, run.state
    saved = dataclasses.replace(config, resume=False, overwrite=False)
    write_text_whole(run.folder.path / "config.json", json.dumps(saved.to_dict(), indent=1) + "\n")
    if config.tensorboard and not tensorboard_is_installed():
        run.console.say("no TensorBoard files: tensorboard is not installed (pip install tensorboard)")
    if not matplotlib_is_installed():
        run.console.say('no curves.png: matplotlib is not installed (pip install -e ".[plots]")')
    return Log(
        run.folder.path,
        step=state.step,
        evaluated=state.evaluated_step == state.step,
        tensorboard=config.tensorboard,
    )


def _save_final(run: Run) -> None:
    save_named(run, "final")
    if run.ema is not None:
        with run.ema.in_model():
            save_named(run, "final_ema")


def _result(run: Run, stopped_by: str | None) -> TrainResult:
    path, state = run.folder.path, run.state
    return TrainResult(
        folder=path,
        step=state.step,
        epochs=state.epoch,
        history=state.history,
        best=state.best,
        best_model=path / "best" if state.best is not None else None,
        final_model=path / "final" if stopped_by is None else None,
        final_average=path / "final_ema" if stopped_by is None and run.ema is not None else None,
        last_checkpoint=run.folder.last_complete(),
        skipped_steps=state.skipped,
        stopped_by=stopped_by,
    )
