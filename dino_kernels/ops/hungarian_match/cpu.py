"""CPU backend: the native C++ kernel in csrc/hungarian_match."""

from __future__ import annotations

from dino_kernels.ops.hungarian_match.native import forward
from dino_kernels.ops.matching_cost.cpu import unsupported

__all__ = ["forward", "unsupported"]
