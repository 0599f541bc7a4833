"""Choose the device and the precision of a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch

Amp = Literal["off", "bf16", "fp16"]
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return the named device; for None a GPU if there is one, else the CPU.

    Raises:
        ValueError: `device` names no device, or a GPU and PyTorch finds none.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1, ..., got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but PyTorch finds no GPU. Use cpu, or install a CUDA build of PyTorch")
    return chosen


def autocast(device: torch.device | str, amp: str) -> Callable[[], Any]:
    """Return a function that makes the context of a forward pass.

    Raises:
        ValueError: `amp` is unknown.
    """
    if amp == "off":
        return nullcontext
    if amp not in _AMP_DTYPES:
        raise ValueError(f"amp must be one of {('off', *_AMP_DTYPES)}, got {amp!r}")
    return lambda: torch.autocast(torch.device(device).type, dtype=_AMP_DTYPES[amp])
