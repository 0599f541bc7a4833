"""Shared by all Triton backends: where Triton can run, and on which device it launches."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# PyTorch's device types of NVIDIA's and AMD's GPUs, and of Intel's.
DEVICES = ("cuda", "xpu")
# Found at import and not during a call, because torch.compile cannot trace the search.
INSTALLED = importlib.util.find_spec("triton") is not None
MISSING = "triton is not installed: run pip install 'dino-kernels[triton]'"


def unsupported(name: str, tensor: Tensor) -> str | None:
    """Return why no Triton kernel can run a call with this argument, or None."""
    if tensor.device.type not in DEVICES:
        return f"it runs on CUDA tensors, {name} is on {tensor.device}"
    return None if INSTALLED else MISSING


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, on which Triton launches. CPU tensors are for Triton's interpreter."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)
