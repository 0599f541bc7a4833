"""The loop: steps, epochs, and what happens between them."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from dino.data import Batch, to_device
from dino.training import report
from dino.training.checkpoint import save_checkpoint
from dino.training.curves import draw_curves, matplotlib_is_installed
from dino.training.evaluation import EvaluationStopped, validate
from dino.training.hooks import Hook
from dino.training.log import Log
from dino.training.optimizer import learning_rate_factor, set_learning_rates
from dino.training.pace import Pace
from dino.training.run import Run
from dino.training.signals import StopRequest
from dino.training.step import StepReport, TrainingError

DOUBTFUL_SKIPPED_IN_A_ROW = 3
MOST_SKIPPED_IN_A_ROW = 20


class Loop:
    """Trains a run to its end, or until a stop is requested.

    Args:
        run: a run at its start or at a checkpoint.
        log: where rows are written; only on the first process.
        stop: read in each step.
        hooks: called on the first process.
    """

    def __init__(self, run: Run, log: Log | None, stop: StopRequest, hooks: Sequence[Hook] = ()) -> None:
        self.run = run
        self.log = log
        self.stop = stop
        self.hooks = hooks if run.ranks.first else ()
        self._pace = Pace()
        self.stopped: str | None = None
        """The signal that ended the run early."""
        steps = run.state.step + run.steps_left
        self._bar: tqdm = run.console.bar((), "training", total=steps, initial=run.state.step)
        self._recent: deque[tuple[StepReport, float, float]] = deque(maxlen=run.config.log_every)
        self._since_row = 0
        self._rate = 0.0  # of the step that is not settled
        self._checkpoint_is_agreed = False
        self._step_ended = time.monotonic()
        self._in_a_row = 0
        self._saved_step = run.state.step
        self._saved_at = time.monotonic()

    def __call__(self) -> None:
        """Train.

        Raises:
            TrainingError: training cannot continue; the message describes how to recover.
        """
        run = self.run
        started = time.monotonic() - run.state.seconds
        with self._bar:
            self._between_epochs()
            while run.steps_left > 0 and self.stopped is None:
                for batches in self._windows():
                    self._step(batches)
                    run.state.seconds = time.monotonic() - started
                    if run.steps_left == 0 or self.stopped is not None:
                        break
                self._settle()
                run.finish_epoch()
                self._save()
                self._write_row()
                if self.stopped is None:
                    self._between_epochs()

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the batches of each step, from the run's position to the end of the epoch."""
        loader, batches = self.run.loader, []
        loaded = self._pace.watch(loader.batches(self.run.state.epoch, self.run.state.images))
        for batch in to_device(loaded, self.run.ranks.device):
            self.run.leave_out("training", loader.problems)
            batches.append(batch)
            if len(batches) == self.run.config.accumulate:
                yield batches
                batches = []

    def _step(self, batches: list[Batch]) -> None:
        run, state = self.run, self.run.state
        factor = learning_rate_factor(state.epoch, state.step, run.config.drops, run.config.warmup_steps)
        set_learning_rates(run.optimizer, factor)
        try:
            run.step(batches, lambda: (self.stop.signal is not None, self._checkpoint_is_due()), self._done)
        except RuntimeError as error:
            if report.is_out_of_memory(error):
                raise TrainingError(report.out_of_memory(run, batches)) from error
            raise
        state.step += 1
        state.images += run.images_per_step
        self._rate = run.config.lr * factor
        if run.ranks.size == 1 and self.stop.signal is not None:
            self._settle()
            self.stopped = self.stop.signal
        by_steps = run.config.checkpoint_every > 0 and state.step % run.config.checkpoint_every == 0
        if (by_steps or self._checkpoint_is_agreed) and not run.epoch_is_over and self.stopped is None:
            self._settle()
            self._checkpoint_is_agreed = False  # the step just settled asked for it, too
            self._save()

    def _settle(self) -> None:
        """Take note of the last step's results now. Otherwise they are noted during the next step, without waiting."""
        if (done := self.run.step.finish()) is not None:
            self._done(done)

    def _done(self, done: StepReport) -> None:
        """Take note of a step's results, while the weights are those after it."""
        run, state = self.run, self.run.state
        now = time.monotonic()
        seconds, waited = now - self._step_ended, self._pace.waited()
        self._recent.append((done, seconds, waited))
        self._since_row += 1
        self._step_ended = now
        if done.skipped is None:
            self._in_a_row = 0
            if run.ema is not None:
                run.ema.update()
        else:
            self._skip(done)
        for hook in self.hooks:
            run.attempt("a hook", lambda: hook.step(state.step, run.fraction_of_epochs, done.losses))  # noqa: B023
        if state.step % run.config.log_every == 0:
            self._write_row()
        self._bar.set_description_str(f"epoch {state.epoch + 1}/{run.config.epochs}", refresh=False)
        self._bar.set_postfix_str(report.status(run, self._means(len(self._recent))), refresh=False)
        self._bar.update()
        if len(self._recent) == 1:
            self._bar.refresh()  # outside a terminal the next line comes after a while
        if advice := self._pace.advice(run.ranks.device, seconds, waited, run.config.workers):
            run.console.log(advice)
        stop_requested, self._checkpoint_is_agreed = done.flags
        if stop_requested:
            self.stopped = self.stop.signal or "SIGTERM"  # the signal may have reached another process only

    def _skip(self, done: StepReport) -> None:
        run, state = self.run, self.run.state
        assert done.skipped is not None
        state.skipped += 1
        self._in_a_row += 1
        scale = run.step.precision.scaler.get_scale() if run.config.amp == "fp16" else None
        run.console.log(report.skipped_step(state.step, done.skipped, scale))
        if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(report.never_finite(run, self._in_a_row, done.skipped))

    def _between_epochs(self) -> None:
        """Evaluate if an evaluation is due and was not done before an interruption."""
        run, state = self.run, self.run.state
        every = run.config.evaluate_every
        at_end_of_epoch = state.epoch > 0 and state.images == 0
        is_due = every > 0 and ((at_end_of_epoch and state.epoch % every == 0) or run.steps_left == 0)
        if not is_due or state.evaluated_step == state.step:
            return
        if run.ranks.size == 1:
            run.attempt("the evaluation", self._evaluate)
        else:  # the others would wait for a process that went on
            self._evaluate()
        self._step_ended = time.monotonic()

    def _evaluate(self) -> None:
        run, state = self.run, self.run.state
        try:
            entry = validate(run, self.stop)
        except EvaluationStopped:
            self.stopped = self.stop.signal
            return
        is_best = state.best is not None and state.best["step"] == state.step and state.best["AP"] > 0
        run.console.log(report.evaluation_line(entry, is_best))
        metrics = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
        if self.log is not None:
            log = self.log
            run.attempt("log.csv", lambda: log.write(state.step, entry["epoch"], metrics))
            run.attempt("the checkpoint", lambda: run.folder.update(state.step, run=dataclasses.asdict(state)))
            self.draw()
        for hook in self.hooks:
            run.attempt("a hook", lambda: hook.evaluation(state.step, entry["epoch"], metrics))  # noqa: B023
        if run.out_of_patience:
            run.console.log(report.out_of_patience(run))
        run.ranks.wait()

    def draw(self) -> None:
        """Draw the curves if matplotlib is installed."""
        if self.log is not None and matplotlib_is_installed() and self.run.state.step > 0:
            folder = self.run.folder.path
            self.run.attempt("curves.png", lambda: draw_curves(folder, title=str(folder)))

    def _save(self) -> None:
        """Write a checkpoint. Where that fails the run goes on, unless it is about to stop, and tries again later."""
        run = self.run
        # Checkpoints of weights that no longer give finite steps would displace the last good one.
        is_doubtful = self._in_a_row >= DOUBTFUL_SKIPPED_IN_A_ROW and self.stopped is None
        if run.state.step == self._saved_step or is_doubtful:
            return
        self._saved_at = time.monotonic()
        try:
            save_checkpoint(run)
            self._saved_step = run.state.step
        except TrainingError as error:
            if self.stopped is not None:
                raise
            run.note(str(error))

    def _checkpoint_is_due(self) -> bool:
        minutes = self.run.config.checkpoint_minutes
        return self.run.ranks.first and minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes

    def _write_row(self) -> None:
        count, self._since_row = self._since_row, 0
        if self.log is not None and count > 0:
            run, log = self.run, self.log
            values = {"lr": self._rate, "skipped": run.state.skipped} | self._means(count)
            run.attempt("log.csv", lambda: log.write(run.state.step, run.fraction_of_epochs, values))

    def _means(self, count: int) -> dict[str, float]:
        """Return the means of losses, gradient norm, speed and waiting over the last `count` steps."""
        recent = list(self._recent)[-count:]
        finite = [done for done, *_ in recent if done.skipped is None]
        images, seconds, waited = (
            sum(column) for column in zip(*((d.images, s, w) for d, s, w in recent), strict=True)
        )
        means = {"images_per_second": images / seconds, "waiting": waited / seconds}
        if finite:
            means |= {name: sum(done.losses[name] for done in finite) / len(finite) for name in finite[0].losses}
            means["gradient_norm"] = sum(done.norm for done in finite) / len(finite)
        return means
