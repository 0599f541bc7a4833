"""What all Triton backends share: where Triton can run, and on which device it launches."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Of torch's device types: NVIDIA's and AMD's GPUs, and Intel's.
DEVICES = ("cuda", "xpu")
# Looked for here, and not when a call asks: torch.compile cannot look.
INSTALLED = importlib.util.find_spec("triton") is not None
MISSING = "triton is not installed; pip install 'dino-kernels[triton]'"


def unsupported(name: str, tensor: Tensor) -> str | None:
    """Why no Triton kernel can run a call with this argument."""
    if tensor.device.type not in DEVICES:
        return f"it runs on CUDA tensors, {name} is on {tensor.device}"
    return None if INSTALLED else MISSING


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; this makes it the tensor's. Triton's interpreter has CPU tensors."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)
