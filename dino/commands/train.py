"""The options of `python -m dino train`, made of `TrainConfig`."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dino.model.config import PRESETS, ModelConfig
from dino.training.config import TrainConfig

_DEFAULT_PRESET = "dino_4scale_r50"


@dataclasses.dataclass(frozen=True)
class ModelOptions(ModelConfig):
    # The data say how many classes there are.
    num_classes: Annotated[int, tyro.conf.Suppress] = 91


@dataclasses.dataclass(frozen=True)
class Options(TrainConfig):
    """Train a detector on a data set in COCO format.

    Under torchrun, all processes train one model. With --resume, the options of the run in --output are the defaults.
    """

    model: ModelOptions = ModelOptions()
    finetune: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    backbone_weights: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    lr_drop_epochs: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="[INT [INT ...]]")] = None
    # Last, so that it stands above the model's own options, whose defaults it chooses.
    preset: Literal[tuple(PRESETS)] = _DEFAULT_PRESET  # pyright: ignore[reportInvalidTypeForm]
    """Model whose values the options below have if they are not given."""


def train_command(argv: Sequence[str]) -> int:
    """Run `python -m dino train` with some arguments; its exit code is 128 + a signal's number after a stop."""
    from dino.training.train import train

    stopped_by = train(parse(argv)).stopped_by
    return 0 if stopped_by is None else 128 + signal.Signals[stopped_by].value


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that some arguments ask for; ends the process at --help and at a wrong option."""
    defaults = _defaults(list(arguments))
    options = tyro.cli(Options, args=arguments, default=defaults, prog="python -m dino train")
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)}
    fields["model"] = ModelConfig(**dataclasses.asdict(options.model))
    return TrainConfig(**fields)


def _defaults(arguments: list[str]) -> Options:
    """What holds for options that are not given: the preset's model, or the options of the run to resume."""
    preset = _given(arguments, "--preset")
    fields: dict[str, object] = {"data": tyro.MISSING}
    model = PRESETS.get(preset or _DEFAULT_PRESET, PRESETS[_DEFAULT_PRESET])
    if "--resume" in arguments:
        file = Path(_given(arguments, "--output") or TrainConfig.output) / "config.json"
        if file.exists():
            saved = TrainConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
            fields = {field.name: getattr(saved, field.name) for field in dataclasses.fields(TrainConfig)}
            model = model if preset else saved.model
    fields["model"] = ModelOptions(**dataclasses.asdict(model))
    return Options(**fields)  # pyright: ignore[reportArgumentType]


def _given(arguments: list[str], option: str) -> str | None:
    """The value of an option, read before all options are known."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
