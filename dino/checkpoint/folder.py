"""Save and load a model in a directory: `model.safetensors` holds everything, `model.json` is a copy for people."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from dino.checkpoint.published import find_published
from dino.checkpoint.read import (
    HEADER_KEY,
    MODEL_FILE,
    CheckpointError,
    TensorFile,
    find_model,
    read_header,
    read_tensors,
)
from dino.checkpoint.thresholds import THRESHOLDS_FILE
from dino.common.files import write_text_whole, write_whole
from dino.common.text import shorten
from dino.data.categories import Categories
from dino.model.config import ModelConfig
from dino.model.dino import DINO

JSON_FILE = "model.json"
FORMAT_VERSION = 1
_FIELDS = {"format_version", "model", "categories", "extra"}


def save_model(
    model: nn.Module,
    directory: str | os.PathLike[str],
    categories: Categories | None = None,
    extra: Mapping[str, Any] | None = None,
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model to a directory, replacing an existing one. A crash leaves either the old or the new model.

    Args:
        model: a `DINO`, not wrapped by DistributedDataParallel or torch.compile.
        directory: created if it does not exist.
        categories: names and ids of the classes.
        extra: further values that JSON can hold: metrics, the step, the size of the images.
        tensors: the weights to write; the default is the model's own, which a sharded model does not have in full.

    Returns:
        The path of `model.safetensors`, which can also be used without the directory.

    Raises:
        TypeError: the model is not a `DINO`.
        ValueError: the number of categories is not the model's number of classes.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise TypeError(f"model must be a DINO, got {type(model).__name__}. Unwrap it (`.module`).")
    if categories is not None and categories.num_classes != config.num_classes:
        raise ValueError(f"categories must be the model's {config.num_classes}, got {categories.num_classes}")
    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "model": dataclasses.asdict(config),
            "categories": None if categories is None else categories.to_json(),
            "extra": None if extra is None else dict(extra),
        },
        indent=1,
    )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict() if tensors is None else tensors
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # The JSON is a copy for people. Neither it nor thresholds may outlive the model that they describe.
    for name in (JSON_FILE, THRESHOLDS_FILE):
        (directory / name).unlink(missing_ok=True)
    write_whole(directory / MODEL_FILE, lambda path: save_file(tensors, path, {HEADER_KEY: text}))
    write_text_whole(directory / JSON_FILE, text + "\n")
    return directory / MODEL_FILE


class SavedModel(NamedTuple):
    """The content of a file of `save_model`."""

    model: DINO
    categories: Categories | None
    extra: dict[str, Any]


def load_model(path: str | os.PathLike[str]) -> tuple[DINO, Categories | None]:
    """Load a model of `save_model`, on the CPU and in training mode, and its categories.

    Args:
        path: the directory, its `model.safetensors`, or the folder of a run, whose best model is taken. `model.json` is
            not read.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is damaged, from a newer version, or not written by `save_model`.
    """
    return read_model(path)[:2]


def read_model(path: str | os.PathLike[str] | TensorFile) -> SavedModel:
    """Load a model, its categories and its `extra`, reading the file once. See `load_model`."""
    file = read_tensors(path)
    description = _description(file)
    model = DINO(_config(file, description["model"]))
    kinds = {name: own.is_floating_point() for name, own in model.state_dict().items()}
    odd = [f"{n} ({t.dtype})" for n, t in file.tensors.items() if t.is_floating_point() != kinds.get(n, True)]
    if odd:  # quantised weights are meaningless without their scales
        raise CheckpointError(f"{file.where}: weights must be floating-point numbers, got {shorten(odd, 3)}")
    try:
        model.load_state_dict(file.tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file.where}: the weights do not fit the configuration stored with them: {error}"
        ) from error
    return SavedModel(model, read_categories(file), description["extra"] or {})


def saved_config(path: str | os.PathLike[str]) -> ModelConfig | None:
    """Return the configuration of a model of `save_model`, or of a published checkpoint; None for other weights.

    The weights are not read, or downloaded.
    """
    published = find_published(path)
    if published is not None:
        return published.config
    file = find_model(path)
    header = read_header(file) if file.suffix == ".safetensors" else None
    found = TensorFile(str(file), {}, header)
    return None if header is None else _config(found, _description(found)["model"])


def read_categories(file: TensorFile) -> Categories | None:
    """Return the categories that `save_model` stored in a file, or None if it has none."""
    records = None if file.header is None else _description(file)["categories"]
    try:
        return None if records is None else Categories.from_json(records)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.where}: {error}") from error


def _description(file: TensorFile) -> dict[str, Any]:
    """Return what `save_model` stored beside the tensors, checked."""
    if file.header is None:
        raise CheckpointError(
            f"{file.where}: weights without a configuration. Build the model and use load_checkpoint."
        )
    found = file.header
    if not isinstance(found, dict) or not isinstance(found.get("format_version"), int):
        raise CheckpointError(f"{file.where}: not written by save_model: it has no format_version")
    if found["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{file.where}: has format {found['format_version']}, this version reads up to {FORMAT_VERSION}. Upgrade "
            "dino-kernels."
        )
    if set(found) != _FIELDS:
        odd = sorted(set(found) ^ _FIELDS)
        raise CheckpointError(f"{file.where}: fields must be {sorted(_FIELDS)}; unknown or missing: {shorten(odd)}")
    return found


def _config(file: TensorFile, fields: Any) -> ModelConfig:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file.where}: model must be a dict of configuration fields, got {fields!r}")
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(ModelConfig)})
    if unknown:
        raise CheckpointError(
            f"{file.where}: unknown fields of the model's configuration: {shorten(unknown)}. Upgrade dino-kernels."
        )
    try:
        return ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.where}: {error}") from error
