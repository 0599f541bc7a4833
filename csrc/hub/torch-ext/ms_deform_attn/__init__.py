"""Multi-scale deformable attention on CPUs and CUDA GPUs: forward and backward, 16 bit to float64."""

from . import layers
from .functions import ms_deform_attn, ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ["layers", "ms_deform_attn", "ms_deform_attn_backward", "ms_deform_attn_forward"]
