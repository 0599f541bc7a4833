"""Step 4: a row is added to sums in registers as soon as it is read: neither gathered rows nor corners exist.

    python -m dino_kernels.tutorial.attention.step4_rows

The backward computes the corners again from the inputs, and adds to grad_value atomically.
"""

from __future__ import annotations

from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem
from dino_kernels.tutorial.counting import size


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; differentiable."""
    return call.attend("step4_rows.cpp", "step4_rows.cpp", given)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    rows, D = given.logits.numel() * 4, given.value.shape[3]
    return f"{size(rows * D * 4)} of rows read once, written never; backward: up to {rows * D:,} atomic additions"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step4_rows")
