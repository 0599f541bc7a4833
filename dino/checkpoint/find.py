"""Finding a trained model on disk, with what it needs to be used: its classes and the size of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.checkpoint.folder import load_model, read_extra
from dino.checkpoint.load import LoadReport, load_checkpoint
from dino.checkpoint.read import CheckpointError
from dino.data import Categories, EvalTransform
from dino.model.config import model_config
from dino.model.dino import DINO

_MODEL = "model.safetensors"
# In what a model is saved with: the arguments of EvalTransform.
SIZE = "image_size"
# Where a run keeps models, the one that people mean first.
_OF_A_RUN = ("", "best", "final", "last")


@dataclass(frozen=True)
class TrainedModel:
    """A model from a file."""

    model: DINO
    categories: Categories
    transform: EvalTransform
    file: Path
    report: LoadReport | None = None
    """What was loaded from weights that came without a configuration."""


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
                f"{file}: weights alone, without a configuration; say with preset which model they belong to, for "
                f"example dino_4scale_r50"
            )
        model, categories = load_model(file)
        return TrainedModel(
            model, categories or default_categories(model.config.num_classes), _trained_size(file), file
        )
    # No download of backbone weights that are about to be replaced.
    model = DINO(model_config(preset, **overrides))
    report = load_checkpoint(model, file)
    return TrainedModel(model, default_categories(model.config.num_classes), EvalTransform(), file, report)


def find_model(path: str | Path) -> Path:
    """The file of weights that a path means: that file, or the best there is in a folder.

    Raises:
        FileNotFoundError: no such path, or a folder without a model, with the places that were looked at.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: no such file or folder")
    found = next((path / place / _MODEL for place in _OF_A_RUN if (path / place / _MODEL).is_file()), None)
    if found is None:
        places = ", ".join(str(Path(place) / _MODEL) for place in _OF_A_RUN)
        raise FileNotFoundError(f"checkpoint {path}: has no model; looked for {places} in it")
    return found


def default_categories(num_classes: int) -> Categories:
    """COCO's for 91 classes, as the published checkpoints have them; "class 0", "class 1", ... otherwise."""
    if num_classes == 91:
        return Categories.official_coco()
    return Categories(tuple(range(num_classes)), tuple(f"class {label}" for label in range(num_classes)))


def _trained_size(file: Path) -> EvalTransform:
    """The image size that the model was evaluated with in its training; the published one if nothing is known."""
    extra = read_extra(file)
    if SIZE not in extra:
        return EvalTransform()
    try:
        return EvalTransform(**extra[SIZE])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {SIZE} is not a size of images: {error}") from error
