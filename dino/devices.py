"""Which device is meant."""

from __future__ import annotations

import torch


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that is meant; None is a GPU where there is one.

    Raises:
        ValueError: not a device, or a GPU where there is none.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1, ..., got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but PyTorch finds no GPU; use cpu, or install a CUDA build of PyTorch")
    return chosen
