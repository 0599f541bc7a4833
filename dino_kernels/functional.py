"""The public functions of every op."""

from dino_kernels.ops.fused_ms_deform_attn import fused_ms_deform_attn
from dino_kernels.ops.hungarian_match import hungarian_match
from dino_kernels.ops.linear_sum_assignment import linear_sum_assignment
from dino_kernels.ops.matching_cost import matching_cost
from dino_kernels.ops.ms_deform_attn import ms_deform_attn

__all__ = ["fused_ms_deform_attn", "hungarian_match", "linear_sum_assignment", "matching_cost", "ms_deform_attn"]
