"""`python -m dino train`, with options generated from `TrainConfig`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dino.commands.parsing import description
from dino.model.config import PRESETS, ModelConfig
from dino.training.config import PRESET_RATES, TrainConfig

_DEFAULT_PRESET = "dino_4scale_r50"


@dataclasses.dataclass(frozen=True)
class ModelOptions(ModelConfig):
    # The number of classes is that of the data.
    num_classes: Annotated[int, tyro.conf.Suppress] = 91


@dataclasses.dataclass(frozen=True)
class Options(TrainConfig):
    """Train a detector on a data set in COCO, YOLO, Pascal VOC, CSV or WebDataset format.

    Under torchrun, all processes train one model. With --resume, the options of the run in --output are the defaults,
    --data included; with --finetune, the model of that run or file is.
    """

    model: ModelOptions = ModelOptions()
    finetune: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    backbone_weights: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    offsets_lr: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    lr_drop_epochs: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="[INT [INT ...]]")] = None
    # Last, so that help lists it above the model's own options, whose defaults it sets.
    preset: Literal[tuple(PRESETS)] = _DEFAULT_PRESET  # pyright: ignore[reportInvalidTypeForm]
    """Model with the default values of the options below; dino_4scale_r50_tuned also sets learning rates."""


def train_command(argv: Sequence[str]) -> int:
    """Train, and return the exit code: 128 + the signal's number if a signal stopped the run, 1 if something failed."""
    from dino.training.train import train

    return train(parse(argv)).exit_code


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Parse arguments into a configuration. Exits after --help and at a wrong option."""
    defaults = _defaults(list(arguments))
    options = tyro.cli(
        Options, args=arguments, default=defaults, prog="python -m dino train", description=description(Options)
    )
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)}
    fields["model"] = ModelConfig(**dataclasses.asdict(options.model))
    return TrainConfig(**fields)


def _defaults(arguments: list[str]) -> Options:
    """Return the defaults of the options: the model of the preset or of --finetune, or the run to resume."""
    preset = _given(arguments, "--preset")
    fields: dict[str, object] = {"data": tyro.MISSING, **PRESET_RATES.get(preset or _DEFAULT_PRESET, {})}
    model = PRESETS.get(preset or _DEFAULT_PRESET, PRESETS[_DEFAULT_PRESET])
    weights = _given(arguments, "--finetune")
    if weights is not None and preset is None:
        from dino.checkpoint.folder import saved_config

        model = saved_config(weights) or model
    if "--resume" in arguments:
        file = Path(_given(arguments, "--output") or TrainConfig.output) / "config.json"
        if file.exists():
            saved = TrainConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
            fields = {field.name: getattr(saved, field.name) for field in dataclasses.fields(TrainConfig)}
            model = model if preset else saved.model
    fields["model"] = ModelOptions(**dataclasses.asdict(model))
    return Options(**fields)  # pyright: ignore[reportArgumentType]


def _given(arguments: list[str], option: str) -> str | None:
    """Return the value of an option, read before the full parse."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
