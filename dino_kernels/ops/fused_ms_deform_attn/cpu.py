"""CPU backend: the native C++ kernel in csrc/ms_deform_attn, fed with raw offsets and logits."""

from __future__ import annotations

from dino_kernels.ops.fused_ms_deform_attn.native import backward, forward
from dino_kernels.ops.ms_deform_attn.cpu import unsupported

__all__ = ["backward", "forward", "unsupported"]
