"""The compiled module of Deformable-DETR, for processes that a script starts: they take over its path."""

from dino_kernels.integrations.original import ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]
