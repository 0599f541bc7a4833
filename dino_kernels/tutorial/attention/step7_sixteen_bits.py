"""Step 7: 16-bit storage, float32 sums. Half the bytes of everything that is read or written; positions stay float32.

python -m dino_kernels.tutorial.attention.step7_sixteen_bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem

DTYPE = torch.bfloat16


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D] bfloat16 of bfloat16 inputs; differentiable."""
    return call.attend("step7_sixteen_bits.cpp", "step7_sixteen_bits.cpp", given)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    D = given.value.shape[3]
    return f"a row is {D * 2} bytes instead of {D * 4}: {-(-D * 2 // 64)} cache line instead of {-(-D * 4 // 64)}"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step7_sixteen_bits")
