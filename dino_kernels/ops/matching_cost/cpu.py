"""CPU backend: the native C++ kernel in csrc/matching_cost."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.ops.matching_cost.native import forward

__all__ = ["forward", "unsupported"]


def unsupported(logits: list[Tensor], *rest: object) -> str | None:
    """Why the native CPU kernel cannot run this call."""
    device = logits[0].device
    if device.type != "cpu":
        return f"it runs on CPU tensors, logits are on {device}"
    return libraries.CPU_MISSING
