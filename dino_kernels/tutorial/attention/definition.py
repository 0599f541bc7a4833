"""What the steps are measured against: the package's definition, one `grid_sample` for each level.

python -m dino_kernels.tutorial.attention.definition
"""

from __future__ import annotations

from torch import Tensor

from dino_kernels.tutorial.attention.problem import Problem
from dino_kernels.tutorial.counting import size


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; differentiable by autograd, on any device."""
    return given.kernel("reference")


def why(given: Problem) -> str:
    """Count what makes it what it is."""
    written = size(given.logits.numel() * given.value.shape[3] * 4)
    return f"{len(given.shapes)} calls of grid_sample write {written} of samples"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("definition")
