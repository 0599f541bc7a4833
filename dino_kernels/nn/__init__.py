"""Drop-in modules."""

from dino_kernels.nn.hungarian_matcher import HungarianMatcher
from dino_kernels.nn.ms_deform_attn import MSDeformAttn

__all__ = ["HungarianMatcher", "MSDeformAttn"]
