"""Find a trained model on disk and load it with its classes and image size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.checkpoint.folder import read_model
from dino.checkpoint.load import LoadReport, load_checkpoint
from dino.checkpoint.read import MODEL_FILE, CheckpointError
from dino.data import Categories, EvalTransform
from dino.model.config import model_config
from dino.model.dino import DINO

# Key in `extra` of a saved model: the arguments of EvalTransform.
SIZE = "image_size"
# Where a run keeps models, the preferred one first.
_MODELS_OF_A_RUN = ("", "best", "final", "last")


@dataclass(frozen=True)
class TrainedModel:
    """A model from a file."""

    model: DINO
    categories: Categories
    transform: EvalTransform
    file: Path
    report: LoadReport | None = None
    """What was loaded from weights without a configuration."""


def load_trained(path: str | Path, *, preset: str | None = None, **overrides: Any) -> TrainedModel:
    """Load a model that this package trained, or weights alone.

    Args:
        path: the folder of a run (its best model is taken), a folder with `model.safetensors`, or that file; or a file
            of weights alone, such as the official `.pth` files, which needs `preset`.
        preset: the model that weights alone belong to; a name of `dino.PRESETS`.
        overrides: fields of `ModelConfig` to replace in the preset, such as `num_classes=80`.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: not a model, damaged, or it does not fit the preset.
    """
    path = Path(path)
    file = find_model(path)
    if preset is None:
        if file.suffix != ".safetensors":
            raise CheckpointError(
                f"{file}: weights without a configuration. Name their model with preset, for example dino_4scale_r50"
            )
        model, categories, extra = read_model(file)
        return TrainedModel(
            model, categories or default_categories(model.config.num_classes), _trained_size(file, extra), file
        )
    # No download of backbone weights that are about to be replaced.
    model = DINO(model_config(preset, **overrides))
    report = load_checkpoint(model, file)
    return TrainedModel(model, default_categories(model.config.num_classes), EvalTransform(), file, report)


def find_model(path: str | Path) -> Path:
    """Return the file of weights for a path: that file, or the best model in a folder.

    Raises:
        FileNotFoundError: no such path, or a folder without a model.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: no such file or folder")
    found = next(
        (path / place / MODEL_FILE for place in _MODELS_OF_A_RUN if (path / place / MODEL_FILE).is_file()), None
    )
    if found is None:
        places = ", ".join(str(Path(place) / MODEL_FILE) for place in _MODELS_OF_A_RUN)
        raise FileNotFoundError(f"checkpoint {path}: has no model; looked for {places} in it")
    return found


def default_categories(num_classes: int) -> Categories:
    """Return COCO's categories for 91 classes, as in the published checkpoints; "class 0", "class 1", ... otherwise."""
    if num_classes == 91:
        return Categories.official_coco()
    return Categories(tuple(range(num_classes)), tuple(f"class {label}" for label in range(num_classes)))


def _trained_size(file: Path, extra: dict[str, Any]) -> EvalTransform:
    """Return the image size of the evaluations in training; the published one if it is unknown."""
    if SIZE not in extra:
        return EvalTransform()
    try:
        return EvalTransform(**extra[SIZE])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {SIZE} is not a size of images: {error}") from error
