"""Step 5: the backward without atomics: heads are the outer loop, and only a head's own task writes its rows.

python -m dino_kernels.tutorial.attention.step5_owners
"""

from __future__ import annotations

from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; differentiable, and the gradients have the same bits for any number of threads."""
    return call.attend("step4_rows.cpp", "step5_owners.cpp", given)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    rows, D = given.logits.numel() * 4, given.value.shape[3]
    return f"backward: 0 atomic additions, up to {rows * D // 8:,} of 8 numbers at once"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step5_owners")
