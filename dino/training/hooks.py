"""Follow a run from outside: `train(config, hooks=[MyHook()])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dino.training.train import TrainResult


class Hook:
    """Called after each step and each evaluation, and at the end, in the first process only. Override what you need.

    An exception in a hook is reported and does not end the run. With Weights & Biases:

    >>> class WandB(Hook):
    ...     def __init__(self, config):
    ...         self.run = wandb.init(project="dino", config=config.to_dict())
    ...
    ...     def step(self, step, epoch, losses):
    ...         self.run.log({"epoch": epoch, **losses}, step=step)
    ...
    ...     def evaluation(self, step, epoch, metrics):
    ...         self.run.log(dict(metrics), step=step)
    ...
    ...     def end(self, result):
    ...         self.run.finish(exit_code=0 if result else 1)

    With MLflow:

    >>> class MLflow(Hook):
    ...     def step(self, step, epoch, losses):
    ...         mlflow.log_metrics(dict(losses), step=step)
    ...
    ...     def evaluation(self, step, epoch, metrics):
    ...         mlflow.log_metrics(dict(metrics), step=step)
    ...
    ...     def end(self, result):
    ...         mlflow.end_run("FINISHED" if result else "FAILED")
    """

    def step(self, step: int, epoch: float, losses: Mapping[str, float]) -> None:
        """After each optimisation step: its number, the epochs completed with their fraction, the losses."""

    def evaluation(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """After each evaluation: the twelve COCO metrics in 0..1; those of averaged weights end in _ema."""

    def end(self, result: TrainResult | None) -> None:
        """At the end of a run, also of one that was stopped; None after an error."""
