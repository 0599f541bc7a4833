"""Kernels for detectors of the Deformable-DETR family: deformable attention and Hungarian matching.

One public function per op, several backends behind it.

>>> from dino_kernels import ms_deform_attn, fused_ms_deform_attn
>>> from dino_kernels import hungarian_match, matching_cost, linear_sum_assignment, PackedTargets
>>> from dino_kernels.nn import MSDeformAttn, HungarianMatcher

`python -m dino_kernels` prints what is installed, what was built and why a backend is missing.
"""

from dino_kernels import nn
from dino_kernels._version import __version__
from dino_kernels.ops._core.dispatch import Explanation, UnsupportedError, explain
from dino_kernels.ops._core.flops import register_formulas
from dino_kernels.ops.fused_ms_deform_attn import fused_ms_deform_attn
from dino_kernels.ops.hungarian_match import Match, hungarian_match
from dino_kernels.ops.hungarian_match.pairs import matching_status, pairs_of
from dino_kernels.ops.linear_sum_assignment import Assignment, linear_sum_assignment
from dino_kernels.ops.matching_cost import matching_cost
from dino_kernels.ops.ms_deform_attn import ms_deform_attn
from dino_kernels.targets import PackedTargets

__all__ = [
    "Assignment",
    "Explanation",
    "Match",
    "PackedTargets",
    "UnsupportedError",
    "__version__",
    "explain",
    "fused_ms_deform_attn",
    "hungarian_match",
    "linear_sum_assignment",
    "matching_cost",
    "matching_status",
    "ms_deform_attn",
    "nn",
    "pairs_of",
]

register_formulas()
