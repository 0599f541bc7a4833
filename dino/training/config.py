"""The options of a training run: one frozen dataclass, from which the command line is generated."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino.model.config import PRESETS, ModelConfig, require

PUBLISHED_LR_DROPS = {12: (11,), 24: (20,), 36: (30,)}
PRESET_RATES = {"dino_4scale_r50_tuned": {"lr": 2e-4, "backbone_lr": 2e-5, "offsets_lr": 2e-5}}
"""Learning rates that belong to a preset of the model (detrex's projects/dino/train_net.py)."""
_PATHS = ("data", "output", "finetune", "backbone_weights")
_TUPLES = ("short_sides", "lr_drop_epochs")
_CHOICES = {"amp": ("off", "bf16", "fp16"), "strategy": ("ddp", "fsdp2")}
_AT_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "keep_checkpoints", "log_every", "long_side"), 1),
    **dict.fromkeys(
        (
            "max_steps",
            "warmup_steps",
            "workers",
            "seed",
            "evaluate_every",
            "checkpoint_every",
            "patience",
            "pad_to",
        ),
        0,
    ),
    **dict.fromkeys(("lr", "backbone_lr", "weight_decay", "ema_decay", "checkpoint_minutes"), 0),
}


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. The defaults are the paper's 12 epochs, but with 2 images per process."""

    data: Path
    """Data set: a folder or file in COCO, YOLO, Pascal VOC, CSV or WebDataset format; it determines the number of
    classes. With --resume, by default that of the run."""
    val_fraction: float = 0.0
    """Part of the training images to validate on instead of a validation split, for example 0.1; 0: none."""
    output: Path = Path("runs/train")
    """Folder of the run, for checkpoints, best and final model, log and curves."""
    model: ModelConfig = PRESETS["dino_4scale_r50"]
    """The model; the data set determines its num_classes."""
    finetune: Path | None = None
    """Model to start from: a run, or a file; weights that do not fit (heads of other classes) keep initial values."""
    backbone_weights: Path | None = None
    """File of ImageNet weights for the backbone, for machines that cannot download them."""

    epochs: int = 12
    """Passes over the training images."""
    max_steps: int = 0
    """Stop after this number of optimisation steps, also within an epoch; 0: no limit."""
    batch_size: int = 2
    """Images per process and forward pass."""
    accumulate: int = 1
    """Forward passes per optimisation step; effective batch = batch_size * accumulate * processes (published: 16)."""
    lr: float = 1e-4
    """Learning rate, published for an effective batch of 16."""
    backbone_lr: float = 1e-5
    """Learning rate of the backbone."""
    offsets_lr: float | None = None
    """Learning rate of the sampling offsets of deformable attention; None: as lr."""
    lr_drop_epochs: tuple[int, ...] | None = None
    """Epochs after which the rates drop to a tenth; None: as published (11 of 12, 20 of 24, 30 of 36), else 5/6."""
    warmup_steps: int = 0
    """Steps over which the rates rise linearly; published: 0."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW, on all parameters including norms and biases."""
    clip: float = 0.1
    """Largest norm of the gradient of all parameters; inf disables clipping."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; try bf16 first, which needs no loss scaling. Losses are always in float32."""
    compile: bool = False
    """Compile model and criterion with torch.compile (PyTorch's inductor): the first steps take minutes. Not for
    fsdp2."""
    static: bool = False
    """Replay forward and backward pass as a CUDA graph, one for each padded size, and the update as another: one GPU,
    one process."""
    pad_to: int = 0
    """Pad batches to multiples of this number of pixels; 0: as much as needed, with compile 64 and with static 128."""
    tf32: bool = True
    """Use TensorFloat-32 for float32 matrix products and convolutions on NVIDIA GPUs, as in the published runs."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, which is evaluated and saved as well (0.9997 is usual); 0: none."""

    seed: int = 42
    """Seed of initialisation, shuffling and augmentation; denoising noise uses seed + rank."""
    deterministic: bool = False
    """Use deterministic algorithms only: runs on the same machine are bitwise equal, but slower."""
    device: str = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Under torchrun: replicate the model (ddp) or shard parameters, gradients and optimiser state (fsdp2)."""
    workers: int = 2
    """Loader processes per training process; 0 loads images in the training process."""

    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides in pixels, from which each training image gets a random one; evaluation uses the largest."""
    long_side: int = 1333
    """Upper limit of the long side in pixels."""
    crop: bool = True
    """Randomly crop half of the training images, as published."""
    flip: bool = True
    """Mirror half of the training images, as published; disable where mirroring changes the class (digits, text)."""
    reduced_decoding: bool = True
    """Decode JPEG files of training images at a half, quarter or eighth of their size if that is enough for the first
    resize: those of 12 megapixels load 2.7 times as fast, with pixels that differ by 0.5 of 255 on average."""
    official_classes: bool = False
    """Use category ids as class indices (91 classes for COCO), as in the official checkpoints."""
    skip_invalid: bool = False
    """Skip invalid annotations instead of raising an error."""

    evaluate_every: int = 1
    """Epochs between evaluations on the validation images; 0: never."""
    patience: int = 0
    """Stop after this number of evaluations without a higher AP; 0: never."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only by time and at the end of each epoch."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints; 0: not by time."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep, the latest ones."""
    resume: bool = False
    """Resume from the last complete checkpoint in the output folder; without one, start a new run."""
    overwrite: bool = False
    """Delete an earlier run in the output folder."""
    log_every: int = 20
    """Steps between rows of log.csv."""
    tensorboard: bool = True
    """Write TensorBoard files too, if the package is installed."""

    def __post_init__(self) -> None:
        # Callers pass text for paths, and JSON has lists for tuples.
        for given, names, kind in ((str, _PATHS, Path), (list, _TUPLES, tuple)):
            for name in names:
                if isinstance(getattr(self, name), given):
                    object.__setattr__(self, name, kind(getattr(self, name)))
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            require(math.isfinite(value) and value >= low, name, value, f"at least {low}")
        offsets_lr = 0.0 if self.offsets_lr is None else self.offsets_lr
        require(math.isfinite(offsets_lr) and offsets_lr >= 0, "offsets_lr", self.offsets_lr, "at least 0, or None")
        require(self.seed < 2**63, "seed", self.seed, "below 2**63")
        for name, allowed in _CHOICES.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {allowed}")
        require(0 <= self.val_fraction < 1, "val_fraction", self.val_fraction, "at least 0 and below 1")
        require(self.clip > 0, "clip", self.clip, "above 0 (inf: no clipping)")
        require(self.ema_decay < 1, "ema_decay", self.ema_decay, "below 1 (0: no average; 0.9997 is usual)")
        sides_fit = len(self.short_sides) > 0 and min(self.short_sides) >= 1
        require(sides_fit, "short_sides", self.short_sides, "one or more positive sizes in pixels")
        drops = self.lr_drop_epochs or ()
        require(all(epoch >= 1 for epoch in drops), "lr_drop_epochs", drops, "epochs counted from 1")
        require(not (self.resume and self.overwrite), "resume", True, "left out with overwrite, or overwrite with it")

    @property
    def padding(self) -> int:
        """Heights and widths of batches are multiples of this."""
        return self.pad_to or (128 if self.static else 64 if self.compile else 1)

    @property
    def drops(self) -> tuple[int, ...]:
        """Epochs after which the learning rate drops: `lr_drop_epochs`, or as published for `epochs`."""
        if self.lr_drop_epochs is not None:
            return self.lr_drop_epochs
        return PUBLISHED_LR_DROPS.get(self.epochs, (math.ceil(self.epochs * 5 / 6),))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for `from_dict`."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> TrainConfig:
        """Build a configuration from what `to_dict` returned.

        Raises:
            ValueError: a field is unknown, or its value is not allowed.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(TrainConfig)})
        if unknown:
            raise ValueError(f"TrainConfig has no fields {unknown}. Use a file written by this version")
        return TrainConfig(**{**fields, "model": ModelConfig(**fields["model"])})
