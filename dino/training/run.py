"""The parts of a run and its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dino.checkpoint import build_model, load_checkpoint
from dino.common.console import Console
from dino.common.distributed import Ranks, replicate_or_shard
from dino.common.rng import seed_process
from dino.data import Datasets, EvalTransform, Loader, TrainTransform, build_datasets, build_loader
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.training.config import TrainConfig
from dino.training.ema import MovingAverage
from dino.training.optimizer import build_optimizer
from dino.training.precision import Precision
from dino.training.run_folder import RunFolder
from dino.training.step import Step, compiled

COMPILER = "inductor"
"""Backend of `torch.compile` for `TrainConfig.compile`."""


@dataclass
class RunState:
    """Progress of a run, saved with each checkpoint. The only owner of the position in the data."""

    step: int = 0
    """Optimisation steps, skipped ones included."""
    epoch: int = 0
    """Epochs completed."""
    images: int = 0
    """Images used of the current epoch, by all processes."""
    evaluated_step: int = -1
    """The step after which the last evaluation was done."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    seconds: float = 0.0
    """Training time of all sessions of the run."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per evaluation: step, epoch and metrics, those of averaged weights with the suffix _ema."""
    best: dict[str, Any] | None = None
    """Metrics, epoch and step of the best model, and whether it has averaged weights."""


@dataclass
class Run:
    """All objects of a run."""

    config: TrainConfig
    ranks: Ranks
    console: Console
    folder: RunFolder
    data: Datasets
    loader: Loader
    model: DINO
    step: Step
    ema: MovingAverage | None
    state: RunState = field(default_factory=RunState)
    resume_command: str = ""
    """Shown to the user; by default `python -m dino train --output ... --resume`."""
    left_out: dict[str, set[str]] = field(default_factory=dict)
    """Images that could not be read, by use: "training", "validation"."""
    failures: list[str] = field(default_factory=list)
    """What went wrong beside the training: an evaluation, a file that could not be written."""

    def leave_out(self, use: str, images: list[str]) -> None:
        """Note images that could not be read, and name each once; `images` is emptied."""
        known = self.left_out.setdefault(use, set())
        for image in images:
            if image not in known:
                known.add(image)
                self.console.log(f"left out of {use}: {image}")
        images.clear()

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do something that the training does not need: a failure is noted, once, and does not end the run."""
        try:
            action()
        except Exception as error:
            self.note(f"{what} failed: {type(error).__name__}: {error}")

    def note(self, failure: str) -> None:
        """Note, once, what failed beside the training."""
        if failure not in self.failures:
            self.failures.append(failure)
            self.console.log(f"{failure.removesuffix('.')}. The training continues")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.step.optimizer

    @property
    def images_per_step(self) -> int:
        """Effective batch size."""
        return self.config.batch_size * self.config.accumulate * self.ranks.size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the images that do not fill a step are not used."""
        return len(self.data.train) // self.images_per_step

    @property
    def epoch_is_over(self) -> bool:
        """Whether the images left of the epoch do not fill a step."""
        return len(self.data.train) - self.state.images < self.images_per_step

    def finish_epoch(self) -> None:
        """Move to the start of the next epoch if this one is over."""
        if self.epoch_is_over:
            self.state.epoch += 1
            self.state.images = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` evaluations were no better than the best before; an AP of 0 does not count."""
        patience = self.config.patience
        aps = [max(entry["AP"], entry.get("AP_ema", 0.0)) for entry in self.state.history]
        return 0 < patience < len(aps) and max(aps[-patience:]) <= max(aps[:-patience]) > 0

    @property
    def steps_left(self) -> int:
        """Steps until the end of the run."""
        config, state = self.config, self.state
        if self.out_of_patience:
            return 0
        this_epoch = (len(self.data.train) - state.images) // self.images_per_step
        left = (
            this_epoch + (config.epochs - state.epoch - 1) * self.steps_per_epoch if state.epoch < config.epochs else 0
        )
        return min(left, max(0, config.max_steps - state.step)) if config.max_steps else left

    @property
    def fraction_of_epochs(self) -> float:
        """Epochs completed, including the completed fraction of the current one."""
        # Images used exceed the steps' when a run is resumed with another batch size.
        return self.state.epoch + min(1.0, self.state.images / (self.steps_per_epoch * self.images_per_step))


def assemble(config: TrainConfig, ranks: Ranks, console: Console, folder: RunFolder, *, resumed: bool) -> Run:
    """Read the data and build all parts of a run.

    Args:
        resumed: the weights will be loaded from a checkpoint of the run, so that the backbone needs none.

    Raises:
        ValueError: the training images are fewer than one step needs; an option is not for several processes.
    """
    if ranks.size > 1 and (config.static or (config.compile and config.strategy == "fsdp2")):
        option, what = ("static", "one process") if config.static else ("compile", "one process, or strategy ddp")
        raise ValueError(f"{option} is for {what}, got {ranks.size} processes with {config.strategy}. Leave it out")
    data = load_data(config)
    window = config.batch_size * config.accumulate * ranks.size
    if len(data.train) < window:
        raise ValueError(
            f"{config.data}: {len(data.train)} training images are fewer than one step takes, {window} (batch_size "
            f"{config.batch_size} x accumulate {config.accumulate} x {ranks.size} processes). Lower batch_size or "
            "accumulate"
        )
    loader = build_loader(
        data.train,
        config.batch_size,
        train=True,
        workers=config.workers,
        rank=ranks.rank,
        world_size=ranks.size,
        pin_memory=ranks.device.type == "cuda",
        pad_to=config.padding,
        fixed_capacity=config.compile or config.static,
    )
    # All processes start from the same weights.
    seed_process(config.seed)
    model = new_model(config, data.categories.num_classes, ranks, has_weights=resumed or config.finetune is not None)
    if config.finetune is not None and not resumed:
        report = load_checkpoint(model, config.finetune, strict=False, categories=data.categories)
        if not report.fits:
            raise ValueError(
                f"finetune: {config.finetune} is another model than the one to train ({config.model.backbone}): "
                f"{report}. Leave --preset out for the file's own model, or name that of weights alone"
            )
        console.log(f"{config.finetune}: {report}")
    model.to(ranks.device)
    called, criterion = model, SetCriterion(model.config).to(ranks.device)
    if config.compile:
        called, criterion = compiled(model, COMPILER), compiled(criterion, COMPILER)
    module = replicate_or_shard(called, config.strategy, ranks)
    seed_process(config.seed + ranks.rank)
    step = Step(
        module.train(),
        criterion,
        build_optimizer(model, config),
        Precision(config.amp, ranks.device.type),
        ranks,
        config.clip,
        compiled=config.compile,
        static=config.static,
    )
    ema = MovingAverage(model, config.ema_decay) if config.ema_decay > 0 else None
    return Run(config, ranks, console, folder, data, loader, model, step, ema)


def load_data(config: TrainConfig) -> Datasets:
    """Read the data sets, with the image sizes of `config`.

    Raises:
        DatasetError: the data are missing or invalid.
    """
    return build_datasets(
        config.data,
        train_transform=TrainTransform(
            short_sides=config.short_sides,
            long_side=config.long_side,
            crop_probability=0.5 if config.crop else 0.0,
            flip_probability=0.5 if config.flip else 0.0,
            reduced_decoding=config.reduced_decoding,
        ),
        eval_transform=EvalTransform(max(config.short_sides), config.long_side),
        official_classes=config.official_classes,
        skip_invalid=config.skip_invalid,
        seed=config.seed,
        validate=config.evaluate_every > 0,
        val_fraction=config.val_fraction,
    )


def new_model(config: TrainConfig, num_classes: int, ranks: Ranks, *, has_weights: bool) -> DINO:
    """Build the model for a number of classes, with ImageNet weights in the backbone unless `has_weights`."""
    model_config = dataclasses.replace(config.model, num_classes=num_classes)
    if has_weights:
        return DINO(model_config)
    model: DINO | None = None
    for turn in (True, False):  # the first process downloads the weights, the others find the file
        if ranks.first == turn:
            model = build_model(model_config, backbone_weights=config.backbone_weights)
        ranks.wait()
    assert model is not None
    return model
