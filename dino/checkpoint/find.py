"""Find a trained model on disk and load it with its classes and image size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.checkpoint.folder import read_model
from dino.checkpoint.load import load_checkpoint
from dino.checkpoint.read import CheckpointError, find_model
from dino.common.finite import not_finite
from dino.data import Categories, EvalTransform
from dino.model.config import model_config
from dino.model.dino import DINO

# Key in a saved model's `extra`: the arguments of EvalTransform.
SIZE = "image_size"


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
            of weights alone, such as the official `.pth` files, which needs `preset`.
        preset: the model that weights alone belong to; a name of `dino.PRESETS`.
        overrides: fields of `ModelConfig` to replace in the preset, such as `num_classes=80`.

    Raises:
        FileNotFoundError: the path does not exist or holds no model.
        CheckpointError: the file is not a model, is damaged, has weights that are not finite, or does not fit the
            preset.
    """
    file = find_model(path)
    if preset is None:
        if file.suffix != ".safetensors":
            raise CheckpointError(
                f"{file}: weights without a configuration. Name the model they belong to with preset, for example "
                f"dino_4scale_r50."
            )
        model, categories, extra = read_model(file)
        try:
            transform = EvalTransform(**extra.get(SIZE, {}))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: {SIZE} is not a size of images: {error}") from error
    else:
        # Not build_model: it would download backbone weights that the checkpoint replaces.
        model = DINO(model_config(preset, **overrides))
        load_checkpoint(model, file)
        categories, transform = None, EvalTransform()
    damage = not_finite(model.state_dict().items())
    if damage is not None:
        raise CheckpointError(
            f"{file}: weights are not finite (NaN or infinite): {damage}. The training diverged. Use an earlier "
            "checkpoint, or train again with a lower --lr"
        )
    return TrainedModel(model, categories or default_categories(model.config.num_classes), transform, file)


def default_categories(num_classes: int) -> Categories:
    """Return COCO's categories for 91 classes, as in the published checkpoints; otherwise "class 0", "class 1", ..."""
    if num_classes == 91:
        return Categories.official_coco()
    return Categories(tuple(range(num_classes)), tuple(f"class {label}" for label in range(num_classes)))
