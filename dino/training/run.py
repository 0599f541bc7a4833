"""The parts that a run is made of, and how far it has come."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from dino.checkpoint import build_model, load_checkpoint
from dino.common.distributed import Ranks, spread
from dino.common.rng import seed_process
from dino.data import Datasets, EvalTransform, Loader, TrainTransform, build_datasets, build_loader
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.training.config import TrainConfig
from dino.training.console import Console
from dino.training.ema import MovingAverage
from dino.training.optimizer import build_optimizer
from dino.training.precision import Precision
from dino.training.run_folder import RunFolder
from dino.training.step import Step


@dataclass
class RunState:
    """How far a run has come; saved with each checkpoint."""

    step: int = 0
    """Optimisation steps, skipped ones included."""
    epoch: int = 0
    """Epochs completed."""
    images: int = 0
    """Images used of the epoch after those."""
    evaluated_step: int = -1
    """The step after which the last evaluation took place."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    seconds: float = 0.0
    """Time spent, over all sessions of the run."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per evaluation: step, epoch and metrics, those of averaged weights with the suffix _ema."""
    best: dict[str, Any] | None = None
    """The entry of the best model: AP, epoch, step, and whether it has the averaged weights."""


@dataclass
class Run:
    """Everything that takes part in a run."""

    config: TrainConfig
    ranks: Ranks
    console: Console
    folder: RunFolder
    data: Datasets
    loader: Loader
    model: DINO
    step: Step
    ema: MovingAverage | None
    unsharded: DINO | None
    """Under fsdp2, on the first process: a model of the same shape on the CPU, to save from."""
    state: RunState = field(default_factory=RunState)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.step.optimizer

    @property
    def sharded(self) -> bool:
        """Whether no process has the whole model."""
        return self.config.strategy == "fsdp2" and self.ranks.size > 1

    @property
    def images_per_step(self) -> int:
        """The effective batch size."""
        return self.config.batch_size * self.config.accumulate * self.ranks.size

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train) // self.images_per_step

    @property
    def steps_left(self) -> int:
        """Steps until the end of the run."""
        config, state = self.config, self.state
        this_epoch = (len(self.data.train) - state.images) // self.images_per_step
        left = (
            this_epoch + (config.epochs - state.epoch - 1) * self.steps_per_epoch if state.epoch < config.epochs else 0
        )
        return min(left, max(0, config.max_steps - state.step)) if config.max_steps else left

    @property
    def fraction_of_epochs(self) -> float:
        """Epochs completed, and the part of the next that is done."""
        return self.state.epoch + self.state.images // self.images_per_step / self.steps_per_epoch


def assemble(config: TrainConfig, ranks: Ranks, console: Console, folder: RunFolder, *, resumed: bool) -> Run:
    """Read the data and build everything that `config` asks for.

    Args:
        resumed: the weights come from a checkpoint of the run; the backbone's need not be fetched.
    """
    data = load_data(config)
    window = config.batch_size * config.accumulate * ranks.size
    if len(data.train) < window:
        raise ValueError(
            f"{config.data}: {len(data.train)} training images are fewer than one step takes, {window} (batch_size "
            f"{config.batch_size} x accumulate {config.accumulate} x {ranks.size} processes); lower batch_size or "
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
    )
    # The same seed on all processes, so that they start from one model.
    seed_process(config.seed)
    model = new_model(config, data.categories.num_classes, ranks, has_weights=resumed or config.finetune is not None)
    if config.finetune is not None and not resumed:
        report = load_checkpoint(model, config.finetune, strict=False, categories=data.categories)
        console.say(f"{config.finetune}: {report}")
    sharded = config.strategy == "fsdp2" and ranks.size > 1
    unsharded = copy.deepcopy(model) if sharded and ranks.first else None
    model.to(ranks.device)
    module = spread(model, config.strategy, ranks)
    seed_process(config.seed + ranks.rank)
    step = Step(
        module.train(),
        SetCriterion(model.config),
        build_optimizer(model, config),
        Precision(config.amp, ranks.device.type),
        ranks,
        config.clip,
    )
    ema = MovingAverage(model, config.ema_decay) if config.ema_decay > 0 else None
    return Run(config, ranks, console, folder, data, loader, model, step, ema, unsharded)


def load_data(config: TrainConfig) -> Datasets:
    """The data sets with the configuration's image sizes; each process reads them.

    Raises:
        DatasetError: the folder cannot be used as it is.
    """
    return build_datasets(
        config.data,
        train_transform=TrainTransform(
            short_sides=config.short_sides,
            long_side=config.long_side,
            crop_probability=0.5 if config.crop else 0.0,
            flip_probability=0.5 if config.flip else 0.0,
        ),
        eval_transform=EvalTransform(max(config.short_sides), config.long_side),
        official_classes=config.official_classes,
        skip_invalid=config.skip_invalid,
        seed=config.seed,
    )


def new_model(config: TrainConfig, num_classes: int, ranks: Ranks, *, has_weights: bool) -> DINO:
    """A model with as many classes as the data; with ImageNet weights in the backbone unless it `has_weights`."""
    model_config = dataclasses.replace(config.model, num_classes=num_classes)
    if has_weights:
        return DINO(model_config)
    model: DINO | None = None
    for turn in (True, False):  # the first process may have to download, and the others find the file
        if ranks.first == turn:
            model = build_model(model_config, backbone_weights=config.backbone_weights)
        ranks.wait()
    assert model is not None
    return model
