"""Choose the device and the precision of a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch

Amp = Literal["off", "bf16", "fp16"]
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Precision of inference: float32, or autocast to 16 bits."""
_AMP_OF: dict[str, Amp] = {"float32": "off", "bfloat16": "bf16", "float16": "fp16"}


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


def choose_dtype(device: torch.device, dtype: Dtype | torch.dtype) -> tuple[Dtype, Amp]:
    """Return the precision of inference on a device, and the autocast that gives it.

    "auto" is bfloat16 on a CPU that multiplies matrices in it (AVX512-BF16 or AMX), and float32 anywhere else.

    Raises:
        ValueError: `dtype` is unknown.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        fast = device.type == "cpu" and _multiplies_bfloat16()
        name = "bfloat16" if fast else "float32"
    if name not in _AMP_OF:
        raise ValueError(f"dtype must be one of {('auto', *_AMP_OF)}, got {dtype!r}")
    return cast(Dtype, name), _AMP_OF[name]


def _multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for it; False where this PyTorch cannot tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public
    return any(getattr(torch.cpu, check, bool)() for check in checks)


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
