"""Train a detector: `train(TrainConfig(data="coco"))`, or `python -m dino train --data coco`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.common.console import Console
from dino.common.distributed import joined_ranks
from dino.common.files import write_text_whole
from dino.common.rng import numerics
from dino.training import report
from dino.training.checkpoint import restore, save_named
from dino.training.config import TrainConfig
from dino.training.curves import matplotlib_is_installed
from dino.training.hooks import Hook
from dino.training.log import Log, tensorboard_is_installed
from dino.training.loop import Loop
from dino.training.run import Run, assemble
from dino.training.run_folder import RunFolder
from dino.training.signals import StopRequest
from dino.training.step import TrainingError

__all__ = ["Hook", "TrainConfig", "TrainResult", "TrainingError", "train"]


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    folder: Path
    """The run's folder: checkpoints, log.csv, curves.png."""
    step: int
    """Optimisation steps taken."""
    epochs: int
    """Epochs completed."""
    history: list[dict[str, float]]
    """Step, epoch and the twelve COCO metrics of each evaluation; those of averaged weights end in _ema."""
    best: dict[str, Any] | None
    """Metrics, step and epoch of the best model, and whether it has averaged weights; None without an evaluation."""
    best_model: Path | None
    """Folder of the model with the highest AP."""
    final_model: Path | None
    """Folder of the model after the last step; None if the run was stopped before."""
    final_average: Path | None
    """Folder of the averaged weights after the last step."""
    last_checkpoint: Path | None
    """The checkpoint from which the run would resume."""
    skipped_steps: int
    """Steps whose loss or gradient was not finite."""
    stopped_by: str | None
    """The signal that stopped the run before its end."""
    failures: tuple[str, ...] = ()
    """What went wrong beside the training: an evaluation, a file that could not be written."""

    @property
    def exit_code(self) -> int:
        """128 + the signal's number if a signal stopped the run, 1 if something failed, else 0."""
        if self.stopped_by is not None:
            return 128 + signal.Signals[self.stopped_by].value
        return 1 if self.failures else 0


def train(
    config: TrainConfig, *, quiet: bool = False, hooks: Sequence[Hook] = (), resume_command: str = ""
) -> TrainResult:
    """Train a detector. Under torchrun every process calls this.

    SIGINT, SIGTERM and SIGHUP end the run after the current step, with a checkpoint; a run resumed from it ends with
    the same weights as an uninterrupted one. A run that is already complete returns at once. What the training does not
    need (an evaluation, the log, a drawing, a periodic checkpoint, a hook) does not end it when it fails.

    Args:
        config: options of the run.
        quiet: print nothing; otherwise the first process prints the progress.
        hooks: called after each step and each evaluation, and at the end; see `Hook`.
        resume_command: shown when the run stops; by default that of `python -m dino train`.

    Raises:
        ValueError: the output folder holds another run, or the training images are fewer than one step needs.
        DatasetError, CheckpointError: data or weights cannot be used.
        TrainingError: training cannot continue: out of memory, no finite steps, a checkpoint cannot be written, or the
            checkpoint to resume from does not fit the data, the model or, within an epoch, the seed.
    """
    with numerics(deterministic=config.deterministic, tf32=config.tf32), joined_ranks(config.device) as ranks:
        console = Console(sys.stdout if ranks.first and not quiet else None)
        folder = RunFolder(config.output)
        checkpoint = ranks.on_first(lambda: folder.checkpoint(resume=config.resume, overwrite=config.overwrite))
        run = assemble(config, ranks, console, folder, resumed=checkpoint is not None)
        run.resume_command = resume_command
        ranks.on_first(lambda: folder.prepare(overwrite=config.overwrite))
        if checkpoint is not None:
            restore(run, checkpoint)
            if ranks.first:
                folder.keep_last(config.keep_checkpoints)  # a killed run may have left more
        console.log(report.greeting(run))
        if checkpoint is not None:
            changes = report.changes(run, folder.state(checkpoint)["config"])
            console.log("\n".join([f"resuming from {checkpoint}", *changes]))
        elif config.resume:
            console.log("no complete checkpoint to resume from: starting a new run")
        result: TrainResult | None = None
        try:
            result = _run_to_the_end(run, hooks)
            return result
        finally:
            for hook in hooks if ranks.first else ():
                run.attempt("a hook", lambda: hook.end(result))  # noqa: B023


def _run_to_the_end(run: Run, hooks: Sequence[Hook]) -> TrainResult:
    ranks, console = run.ranks, run.console
    log = _open_log(run) if ranks.first else None
    try:
        # Before this, nothing is lost if Ctrl-C ends the run at once.
        with run.loader, StopRequest("" if console.silent else report.stopping(run)) as stop:
            loop = Loop(run, log, stop, hooks)
            loop()
            if loop.stopped is None:
                _save_final(run)
        loop.draw()
    finally:
        if log is not None:
            log.close()
    console.log(report.closing(run) if loop.stopped is None else report.stopped(run, loop.stopped))
    return _result(run, loop.stopped)


def _open_log(run: Run) -> Log:
    """Write config.json, now that all checks have passed, and open log.csv."""
    config, state = run.config, run.state
    saved = dataclasses.replace(config, resume=False, overwrite=False)
    write_text_whole(run.folder.path / "config.json", json.dumps(saved.to_dict(), indent=1) + "\n")
    if config.tensorboard and not tensorboard_is_installed():
        run.console.log("no TensorBoard files: tensorboard is not installed (pip install tensorboard)")
    if not matplotlib_is_installed():
        run.console.log('no curves.png: matplotlib is not installed (pip install -e ".[plots]")')
    return Log(
        run.folder.path,
        step=state.step,
        evaluated=state.evaluated_step == state.step,
        tensorboard=config.tensorboard,
        losses=run.step.parts,
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
        failures=tuple(run.failures),
    )
