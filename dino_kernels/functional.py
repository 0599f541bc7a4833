"""The public functions of every op."""

from dino_kernels.ops.fused_ms_deform_attn import fused_ms_deform_attn
from dino_kernels.ops.ms_deform_attn import ms_deform_attn

__all__ = ["fused_ms_deform_attn", "ms_deform_attn"]
