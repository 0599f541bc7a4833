"""What is trained, on which data, for how long: fixed before the first comparison was looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.claims.backbone import pretrain
from dino.commands.demo.digits import DigitsConfig, make_digits_dataset
from dino.model.config import PRESETS, ModelConfig
from dino.training.config import TrainConfig

SEEDS = (0, 1, 2, 3, 4)
IMAGE_SIZE = 96
BATCH_SIZE = 4
SHORT, LONG = 6, 18  # epochs of 200 steps
BACKBONE_IMAGES = 2000
# Small, crowded digits whose boxes overlap: two of one class may share 40 % of the smaller box.
CROWD = DigitsConfig(
    train_images=800,
    valid_images=200,
    image_size=IMAGE_SIZE,
    digit_size=(12, 26),
    min_digits=3,
    max_digits=9,
    overlap=0.4,
)


@dataclass(frozen=True)
class Variant:
    """A model and the length of its training."""

    fields: dict[str, Any] = field(default_factory=dict)  # those that differ from the full model
    epochs: int = SHORT
    turn: int = 0  # variants of turn 0 are trained first, with all seeds

    @property
    def model(self) -> ModelConfig:
        """The demo's model with the variant's fields."""
        return dataclasses.replace(PRESETS["dino_tiny"], **self.fields)


VARIANTS = {
    "DINO": Variant(),
    "no denoising": Variant({"denoising": "off"}),
    "plain denoising": Variant({"denoising": "plain"}),
    "look forward once": Variant({"look_forward": "once"}),
    "pure queries": Variant({"query_selection": "pure"}),
    "static queries": Variant({"query_selection": "static"}),
    "static queries, no denoising": Variant({"query_selection": "static", "denoising": "off"}),
    "2 groups": Variant({"num_denoising": 1}),
    "varifocal": Variant({"classification": "varifocal"}),
    "iou_aware": Variant({"classification": "iou_aware"}),
    "position": Variant({"classification": "position", "class_weight": 6.0, "match_cost": "position"}),
    "matchability": Variant({"classification": "matchability"}),
    "12 groups": Variant({"num_denoising": 6}, turn=1),
    "DINO, long": Variant(epochs=LONG, turn=2),
    "pure queries, long": Variant({"query_selection": "pure"}, LONG, turn=3),
    "static queries, long": Variant({"query_selection": "static"}, LONG, turn=3),
    # Added after the first results, to test an explanation of one of them.
    "DINO, class weight 2": Variant({"class_weight": 2.0}, turn=4),
    "look forward once, class weight 2": Variant({"look_forward": "once", "class_weight": 2.0}, turn=4),
}


def prepare(folder: Path) -> tuple[Path, Path]:
    """Make the data, and a backbone that classifies digits; return their paths. Existing ones are reused."""
    data, weights = folder / "data", folder / "backbone.pth"
    make_digits_dataset(data, CROWD)
    if not weights.exists():
        # Of other images: the detector's training images stay unseen.
        crowd = dataclasses.replace(CROWD, train_images=BACKBONE_IMAGES, seed=1)
        others = make_digits_dataset(folder / "backbone-data", crowd)
        pretrain(others, weights)
    return data, weights


def training(variant: Variant, seed: int, folder: Path, output: Path) -> TrainConfig:
    """Return the training run of a variant with a seed: initial weights, order of the images and noise depend on it."""
    data, weights = prepare(folder)
    return TrainConfig(
        data=data,
        output=output,
        model=variant.model,
        backbone_weights=weights,
        epochs=variant.epochs,
        batch_size=BATCH_SIZE,
        lr=1e-3,
        backbone_lr=1e-3,
        warmup_steps=50,
        lr_drop_epochs=(variant.epochs * 5 // 6,),
        seed=seed,
        workers=0,
        short_sides=(IMAGE_SIZE,),
        long_side=IMAGE_SIZE,
        crop=False,
        flip=False,
        tensorboard=False,
        evaluate_every=0,  # `benchmarks.claims.probe` evaluates the checkpoints
        keep_checkpoints=variant.epochs,
        checkpoint_minutes=0,
        resume=True,
    )
