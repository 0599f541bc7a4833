"""`python -m dino demo`: train a working detector in minutes, on a CPU, without data or network."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dino.checkpoint import build_model
from dino.commands.demo.digits import DigitsConfig, make_digits_dataset
from dino.commands.demo.sheet import draw_sheet
from dino.commands.parsing import parse
from dino.common.console import Console
from dino.common.files import make_folder
from dino.common.text import command_line, percent
from dino.data import Datasets, EvalTransform, build_datasets, build_loader
from dino.evaluation.coco_metrics import CocoMetrics
from dino.evaluation.evaluate import evaluate
from dino.inference.settings import Settings
from dino.model.config import PRESETS
from dino.training.config import TrainConfig
from dino.training.train import TrainResult, train

IMAGE_SIZE = 160


@dataclass(frozen=True)
class DemoOptions:
    """Train a small DINO to find handwritten digits in photographs, and draw its detections.

    The digits and the photographs come with scikit-learn: nothing is downloaded. The model starts from random weights.
    The validation images show digits by other writers on another part of a photograph, and detections.png shows them on
    more photographs.
    """

    output: Path = Path("runs/demo")
    """Output folder: data/ (the images), run/ (the trained model), detections.png."""
    epochs: int = 4
    """Passes over the training images, 250 steps each; 12 give a better model in three times the time."""
    train_images: int = 2000
    """Number of training images."""
    valid_images: int = 200
    """Number of validation images."""
    threshold: float = 0.3
    """Lowest score of a detection in detections.png."""
    seed: int = 0
    """The same seed gives the same images and, on the same machine, the same model."""
    resume: bool = False
    """Resume a stopped demo; with more epochs, train it longer."""


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit code."""
    options = parse(DemoOptions, "demo", arguments)
    Settings(threshold=options.threshold)  # an error before the training
    make_folder(options.output, "output")
    print(f"1. Making {options.train_images:,} images for training and {options.valid_images:,} for validation")
    config = demo_config(options)
    digits = DigitsConfig(
        train_images=options.train_images, valid_images=options.valid_images, image_size=IMAGE_SIZE, seed=options.seed
    )
    make_digits_dataset(config.data, digits, console=Console(sys.stdout))
    print(f"   in {config.data}")

    print("2. Before training")
    before = untrained_metrics(config)
    print(f"   AP {percent(before.AP)}, AP50 {percent(before.AP50)}: random weights")

    print("3. Training")
    result = train(config, resume_command=f"{_command(options)} --resume")
    if result.stopped_by is not None or result.final_model is None:
        return result.exit_code

    print("4. After training")
    for name in ("AP", "AP50"):
        print(f"   {name:<4} {percent(getattr(before, name)):>4} -> {percent(result.history[-1][name]):>4}")
    path = options.output / "detections.png"
    draw_sheet(result.final_model, digits, options.threshold, options.seed).save(path)
    print(f"   {path}: detections in photographs that were not trained on, right and wrong ones marked")
    print(_next_steps(config, result, options))
    return 0


def demo_config(options: DemoOptions) -> TrainConfig:
    """Return the training run of the demo, at ten times the paper's learning rate: the weights are random."""
    return TrainConfig(
        data=options.output / "data",
        output=options.output / "run",
        model=PRESETS["dino_tiny"],
        epochs=options.epochs,
        batch_size=8,
        lr=1e-3,
        backbone_lr=1e-3,
        warmup_steps=50,
        lr_drop_epochs=(max(1, options.epochs - 1),),
        seed=options.seed,
        workers=0,
        short_sides=(IMAGE_SIZE,),
        long_side=IMAGE_SIZE,
        crop=False,
        flip=False,
        tensorboard=False,
        resume=options.resume,
        overwrite=not options.resume,
    )


def demo_datasets(config: TrainConfig) -> Datasets:
    """Return the demo's data, with the transform for evaluation."""
    return build_datasets(config.data, eval_transform=EvalTransform(IMAGE_SIZE, IMAGE_SIZE))


def untrained_metrics(config: TrainConfig) -> CocoMetrics:
    """Return the metrics of a model with random weights."""
    data = demo_datasets(config)
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=data.categories.num_classes)
    assert data.valid is not None
    loader = build_loader(data.valid, 1, train=False, workers=0)
    return evaluate(model, loader, data.valid.index, data.categories, device="cpu")


def _command(options: DemoOptions, **changed: object) -> str:
    """Return the command of a demo, with the options that are not the defaults."""
    chosen = dataclasses.asdict(options) | {"resume": False} | changed
    given = [
        part
        for field in dataclasses.fields(options)
        if chosen[field.name] != field.default
        for part in (f"--{field.name.replace('_', '-')}", chosen[field.name])
    ]
    return command_line("demo", *given)


def _next_steps(config: TrainConfig, result: TrainResult, options: DemoOptions) -> str:
    run, valid = config.output, config.data / "valid"
    return f"""
Next:
  {command_line("predict", "--checkpoint", run, valid, "--output", options.output / "found")}
  {_command(options, epochs=3 * options.epochs)} --resume   (a better model)
  python -m dino train --data YOUR_DATA --help"""
