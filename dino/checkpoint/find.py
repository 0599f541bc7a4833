"""Find a trained model on disk and load it with its classes and image size."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.checkpoint.folder import read_model
from dino.checkpoint.layouts import VARIANTS, layout_of
from dino.checkpoint.load import load_checkpoint
from dino.checkpoint.published import find_published
from dino.checkpoint.read import CheckpointError, find_model, read_tensors
from dino.common.finite import not_finite
from dino.common.text import shorten
from dino.data import Categories, EvalTransform
from dino.model.config import ModelConfig, model_config
from dino.model.dino import DINO

# Key in a saved model's `extra`: the arguments of EvalTransform.
SIZE = "image_size"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")
# Fields that change neither the weights nor the detections.
_TRAINING_FIELDS = ("pretrained_backbone", "gradient_checkpointing", "num_denoising", "label_noise", "box_noise")


@dataclass(frozen=True)
class TrainedModel:
    """A model loaded from a file."""

    model: DINO
    categories: Categories
    transform: EvalTransform
    file: Path


def load_trained(path: str | Path, *, preset: str | None = None, **overrides: Any) -> TrainedModel:
    """Load a model that this package trained, or weights alone.

    Args:
        path: the folder of a run (its best model is taken), a folder with `model.safetensors`, or that file; or a file
            of weights alone, such as the official `.pth` files, which needs `preset`; or the name of a published
            checkpoint, which is downloaded once (`python -m dino weights` lists them).
        preset: the model that weights alone belong to; a name of `dino.PRESETS`. A file with its own configuration
            needs none; if given, the two must agree.
        overrides: fields of `ModelConfig` to replace in the preset, such as `num_classes=80`.

    Raises:
        FileNotFoundError: the path does not exist or holds no model.
        ConnectionError: a published checkpoint could not be downloaded.
        CheckpointError: the file is not a model, is damaged, has weights that are not finite, or contradicts the
            preset or the overrides.
        ValueError, TypeError: the preset or a field does not exist, or the path is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint must be a path, got {type(path).__name__}")
    model_config(preset or ModelConfig(), **overrides)  # unknown names are errors whatever the file holds
    published = find_published(path)
    if published is not None:
        _check_agreement(published.name, published.config, preset, overrides)
    file = find_model(path)
    if file.suffix not in _SUFFIXES:
        raise CheckpointError(
            f"{file}: not a file of weights. Expected {', '.join(_SUFFIXES)}, or the folder of a run."
        )
    source = read_tensors(file)
    if source.header is not None:
        model, categories, extra = read_model(source)
        _check_agreement(file, model.config, preset, overrides)
        try:
            transform = EvalTransform(**extra.get(SIZE, {}))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: {SIZE} is not a size of images: {error}") from error
    elif published is not None:
        model = DINO(published.config)
        load_checkpoint(model, source)
        categories, transform = published.categories, EvalTransform()
    elif preset is None:
        raise CheckpointError(
            f"{file}: weights without a configuration. Name the model they belong to with preset, for example "
            f"dino_4scale_r50."
        )
    else:
        # Not build_model: it would download backbone weights that the checkpoint replaces.
        layout = layout_of(source.tensors) or ""
        model = DINO(model_config(preset, **(VARIANTS.get(layout, {}) | overrides)))
        load_checkpoint(model, source)
        categories, transform = None, EvalTransform()
    damage = not_finite(model.state_dict().items())
    if damage is not None:
        raise CheckpointError(
            f"{file}: weights are not finite (NaN or infinite): {damage}. The training diverged. Use an earlier "
            "checkpoint, or train again with a lower --lr"
        )
    return TrainedModel(model, categories or default_categories(model.config.num_classes), transform, file)


def _check_agreement(file: Path | str, own: ModelConfig, preset: str | None, overrides: dict[str, Any]) -> None:
    """Raise CheckpointError if a file's configuration is not the requested one, in what decides the detections."""
    requested = model_config(preset or own, **overrides)
    # A preset's number of classes is that of COCO, and not a request.
    ignored = {*_TRAINING_FIELDS, *({"num_classes"} - set(overrides))}
    different = [
        f"{field.name} is {getattr(own, field.name)!r}, not {getattr(requested, field.name)!r}"
        for field in dataclasses.fields(own)
        if field.name not in ignored and getattr(own, field.name) != getattr(requested, field.name)
    ]
    if different:
        what = "the arguments" if preset is None else f"preset {preset!r}"
        raise CheckpointError(
            f"{file}: has its own configuration, which contradicts {what}: {shorten(different, 5)}. Leave them out to "
            f"use the file's."
        )


def default_categories(num_classes: int) -> Categories:
    """Return COCO's categories for 91 classes, as in the published checkpoints; otherwise "class 0", "class 1", ..."""
    if num_classes == 91:
        return Categories.official_coco()
    return Categories(tuple(range(num_classes)), tuple(f"class {label}" for label in range(num_classes)))
