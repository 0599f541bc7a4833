"""The loop: steps, epochs, and what happens between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from dino.data import Batch
from dino.training import report
from dino.training.checkpoint import save_checkpoint
from dino.training.console import Pace
from dino.training.curves import draw_curves, matplotlib_is_installed
from dino.training.evaluation import EvaluationStopped, measure
from dino.training.log import Log
from dino.training.optimizer import learning_rate_factor, set_learning_rates
from dino.training.run import Run
from dino.training.signals import StopRequest
from dino.training.step import LOSS_PARTS, StepReport, TrainingError

DOUBTFUL_SKIPPED_IN_A_ROW = 3
MOST_SKIPPED_IN_A_ROW = 20


class Loop:
    """Trains a run to its end, or until it is asked to stop.

    Args:
        run: at its start or at a checkpoint.
        log: where rows go; only the first process has one.
        stop: looked at in each step.
    """

    def __init__(self, run: Run, log: Log | None, stop: StopRequest) -> None:
        self.run = run
        self.log = log
        self.stop = stop
        self.stopped: str | None = None
        """The signal that ended the run early, if one did."""
        self._pace = Pace()
        self._in_a_row = 0
        self._since_row: list[StepReport] = []
        self._saved_step = run.state.step
        self._saved_at = time.monotonic()

    def __call__(self) -> None:
        """Train.

        Raises:
            TrainingError: the run cannot go on; its message says what helps.
        """
        started = time.monotonic() - self.run.state.seconds
        self._between_epochs()
        while self.run.steps_left > 0 and self.stopped is None:
            for batches in self._windows():
                self._step(batches)
                self.run.state.seconds = time.monotonic() - started
                if self.run.steps_left == 0 or self.stopped is not None:
                    break
            if self.run.state.images // self.run.images_per_step == self.run.steps_per_epoch:
                self.run.state.epoch += 1
                self.run.state.images = 0
            self._write_row()
            self._save()
            if self.stopped is None:
                self._between_epochs()

    def _windows(self) -> Iterator[list[Batch]]:
        """The batches of one step after another, to the end of the epoch."""
        batches: list[Batch] = []
        for batch in self.run.loader:
            for line in report.unreadable_images(batch):
                self.run.console.say(line)
            batches.append(batch)
            if len(batches) == self.run.config.accumulate:
                yield batches
                batches = []

    def _step(self, batches: list[Batch]) -> None:
        run, state = self.run, self.run.state
        factor = learning_rate_factor(state.epoch, state.step, run.config.drops, run.config.warmup_steps)
        set_learning_rates(run.optimizer, factor)
        try:
            done = run.step(batches, lambda: (self.stop.signal is not None, self._clock_says_save()))
        except RuntimeError as error:
            if report.is_out_of_memory(error):
                raise TrainingError(report.out_of_memory(run, batches)) from error
            raise
        state.step += 1
        state.images += run.images_per_step
        self._since_row.append(done)
        self._pace.step(done.losses | {"norm": done.norm}, done.images)
        if done.skipped is None:
            self._in_a_row = 0
            if run.ema is not None:
                run.ema.update()
        else:
            self._skip(done)
        if state.step % run.config.log_every == 0:
            self._write_row()
        if self._pace.known:
            run.console.status(lambda: report.status(run, self._pace, self._evaluations_left()))

        asked_to_stop, clock_says_save = done.flags
        if asked_to_stop:
            self.stopped = self.stop.signal or "SIGTERM"  # if it reached another process alone
        by_steps = run.config.checkpoint_every > 0 and state.step % run.config.checkpoint_every == 0
        epoch_ends = state.images // run.images_per_step == run.steps_per_epoch
        if (by_steps or clock_says_save) and not epoch_ends and self.stopped is None:
            self._save()

    def _skip(self, done: StepReport) -> None:
        run, state = self.run, self.run.state
        assert done.skipped is not None
        state.skipped += 1
        self._in_a_row += 1
        scale = run.step.precision.scaler.get_scale() if run.config.amp == "fp16" else None
        run.console.say(report.skipped_step(state.step, done.skipped, scale))
        if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(report.never_finite(run, self._in_a_row, done.skipped))

    def _between_epochs(self) -> None:
        """Evaluate if it is time to, and this was not done before an interruption."""
        run, state = self.run, self.run.state
        every = run.config.evaluate_every
        at_end_of_epoch = state.epoch > 0 and state.images == 0
        is_time = every > 0 and ((at_end_of_epoch and state.epoch % every == 0) or run.steps_left == 0)
        if not is_time or state.evaluated_step == state.step:
            return
        try:
            entry = measure(run, self.stop)
        except EvaluationStopped:
            self.stopped = self.stop.signal
            return
        is_best = state.best is not None and state.best["step"] == state.step and state.best["AP"] > 0
        run.console.say(report.evaluation_line(entry, is_best))
        if self.log is not None:
            numbers = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
            self.log.write(state.step, entry["epoch"], numbers)
            self.draw()
            run.folder.update(state.step, run=dataclasses.asdict(state))
        run.ranks.wait()
        self._pace.pause()

    def draw(self) -> None:
        """Draw the curves, where that is possible."""
        if self.log is not None and matplotlib_is_installed() and self.run.state.step > 0:
            draw_curves(self.run.folder.path, title=str(self.run.folder.path))

    def _save(self) -> None:
        run = self.run
        # Weights after which no step is finite would in time displace the last good checkpoint.
        is_doubtful = self._in_a_row >= DOUBTFUL_SKIPPED_IN_A_ROW and self.stopped is None
        if run.state.step == self._saved_step or is_doubtful:
            return
        save_checkpoint(run)
        self._saved_step = run.state.step
        self._saved_at = time.monotonic()

    def _clock_says_save(self) -> bool:
        minutes = self.run.config.checkpoint_minutes
        return self.run.ranks.first and minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes

    def _write_row(self) -> None:
        rows, self._since_row = self._since_row, []
        if self.log is None or not rows:
            return
        fine = [row for row in rows if row.skipped is None]
        values: dict[str, float] = {
            "lr": self.run.optimizer.param_groups[0]["lr"],
            "skipped": self.run.state.skipped,
        }
        if self._pace.known:
            values["images_per_second"] = self._pace.images_per_second
        if fine:
            values |= {name: sum(row.losses[name] for row in fine) / len(fine) for name in LOSS_PARTS}
            values["gradient_norm"] = sum(row.norm for row in fine) / len(fine)
        self.log.write(self.run.state.step, self.run.fraction_of_epochs, values)

    def _evaluations_left(self) -> int:
        every = self.run.config.evaluate_every
        return (self.run.config.epochs - self.run.state.epoch) // every if every > 0 else 0
