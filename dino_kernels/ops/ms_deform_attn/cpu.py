"""CPU backend: the native C++ kernel in csrc/ms_deform_attn."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops.ms_deform_attn.native import backward, forward

__all__ = ["backward", "forward", "unsupported"]


def unsupported(value: Tensor, *rest: object) -> str | None:
    """Why the native CPU kernel cannot run this call."""
    if value.device.type != "cpu":
        return f"it runs on CPU tensors, value is on {value.device}"
    return libraries.CPU_MISSING
