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

from dino.common.text import shorten

MODEL_FILE = "model.safetensors"
HEADER_KEY = "dino"
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


def read_tensors(source: str | os.PathLike[str] | Mapping[str, Any] | TensorFile) -> TensorFile:
    """Read tensors from a .safetensors file, a file of `torch.save`, a directory of `save_model`, or a dict.

    Unwraps {"model": ...}, {"state_dict": ...} and {"ema_model": ...}, and removes the prefixes of
    DistributedDataParallel and torch.compile. No code from the file is run. A file read before is returned as it is.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is truncated, would run code, or holds something other than tensors.
    """
    if isinstance(source, TensorFile):
        return source
    if isinstance(source, Mapping):
        return TensorFile("the state dict", _plain("the state dict", source), None)
    path = Path(source)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        content, header = _read_safetensors(path)
    else:
        content, header = _read_pickle(path), None
    return TensorFile(str(path), _plain(str(path), content), header)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, header and json.loads(header)  # noqa: SIM118
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
        raise CheckpointError(
            f"{path}: damaged, or not from torch.save ({type(error).__name__}: {str(error)[:200]}). Fetch it again."
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
