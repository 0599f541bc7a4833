"""Read tensors from files of unknown origin."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dino.checkpoint.published import PUBLISHED, find_published
from dino.common.text import shorten, suggestion

MODEL_FILE = "model.safetensors"
HEADER_KEY = "dino"
# Places of models in the folder of a run, in order of preference.
_PLACES = ("", "best", "final", "last")
_WRAPPERS = ("model", "state_dict", "ema_model")
_PREFIXES = ("module.", "_orig_mod.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file, the reason and the fix. No weights were loaded."""


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, as stored."""

    where: str
    tensors: dict[str, Tensor]
    header: dict[str, Any] | None
    """The description that `save_model` stores beside the tensors; None in other files."""


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the file of weights that a path means: that file, the preferred one in a folder, or a published one.

    The name of a published checkpoint (`dino.checkpoint.published`) downloads it, unless a file has that name.

    Raises:
        FileNotFoundError: the path does not exist, or is a folder without a model.
        ConnectionError: a published checkpoint could not be downloaded.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        published = find_published(path)
        if published is not None:
            return published.download()
        raise FileNotFoundError(
            f"checkpoint {path}: no such file or folder, and no name of a published checkpoint."
            f"{suggestion(str(path), PUBLISHED)} python -m dino weights lists these"
        )
    places = [Path(place) / MODEL_FILE for place in _PLACES]
    found = next((path / place for place in places if (path / place).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"checkpoint {path}: has no model; looked for {', '.join(map(str, places))} in it")
    return found


def read_tensors(source: str | os.PathLike[str] | Mapping[str, Any] | TensorFile) -> TensorFile:
    """Read tensors from a .safetensors file, a file of `torch.save`, a folder as `find_model` takes it, or a dict.

    Unwraps {"model": ...}, {"state_dict": ...} and {"ema_model": ...}, and removes the prefixes of
    DistributedDataParallel and torch.compile. No code from the file is run. A file read before is returned as it is.

    Raises:
        FileNotFoundError: the file does not exist, or a folder has no model.
        CheckpointError: the file is truncated, would run code, or holds something other than tensors.
    """
    if isinstance(source, TensorFile):
        return source
    if isinstance(source, Mapping):
        return TensorFile("the state dict", _plain("the state dict", source), None)
    path = find_model(source)
    if path.suffix == ".safetensors":
        content, header = _read_safetensors(path)
    else:
        content, header = _read_pickle(path), None
    return TensorFile(str(path), _plain(str(path), content), header)


def read_header(path: Path) -> dict[str, Any] | None:
    """Return the description that `save_model` stored in a .safetensors file, without reading the tensors."""
    return _read_safetensors(path, with_tensors=False)[1]


def _read_safetensors(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            names = file.keys() if with_tensors else ()
            return {name: file.get_tensor(name) for name in names}, header and json.loads(header)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}). Fetch it again.") from error


def _read_pickle(path: Path) -> Any:
    try:
        # The official files also hold the arguments of the training script.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise any error of pickle, zipfile or torch
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: holds {refused[1]}, which may run code when read. If you trust its origin, extract the "
                'weights: torch.save(torch.load(path, weights_only=False)["model"], new_path)'
            ) from error
        # PyTorch puts the reason last, after advice that does not apply.
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        first = next(iter(reason.strip().splitlines()), "")[:200]
        raise CheckpointError(
            f"{path}: damaged, or not from torch.save ({type(error).__name__}: {first}). Fetch it again."
        ) from error


def _plain(where: str, content: Any) -> dict[str, Tensor]:
    for _ in range(2):  # {"state_dict": {"model": ...}} exists
        inner = next((key for key in _WRAPPERS if isinstance(content, Mapping) and key in content), None)
        if inner is not None and isinstance(content[inner], Mapping):
            content = content[inner]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: expected a dict of tensors, got {type(content).__name__}")
    foreign = [
        f"{name!r} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if foreign or not content:
        raise CheckpointError(
            f"{where}: expected tensors by name, or one of {list(_WRAPPERS)} holding them, got "
            + (shorten(foreign) or "nothing")
        )
    tensors = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
