"""Multi-scale deformable attention kernels: one public function per op, several backends behind it.

>>> from dino_kernels import ms_deform_attn, fused_ms_deform_attn
>>> from dino_kernels.nn import MSDeformAttn

`python -m dino_kernels` prints what is installed, what was built and why a backend is missing.
"""

from dino_kernels import nn
from dino_kernels._dispatch import Explanation, UnsupportedError, explain
from dino_kernels._version import __version__
from dino_kernels.functional import fused_ms_deform_attn, ms_deform_attn

__all__ = [
    "Explanation",
    "UnsupportedError",
    "__version__",
    "explain",
    "fused_ms_deform_attn",
    "ms_deform_attn",
    "nn",
]
