"""Step 4 on a GPU, in CUDA: a warp sums the rows of one item in registers, a channel per lane.

    python -m dino_kernels.tutorial.attention.cuda_rows

Forward only, float32; it needs nvcc. It has never run on a GPU: the tests run it thread by thread on a CPU, and no
speed is claimed for it.
"""

from __future__ import annotations

from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; forward only."""
    B, Q, M, _ = given.logits.shape
    output = given.value.new_empty(B, Q, M * given.value.shape[3])
    if output.numel():
        call.run("cuda_rows.cu", "forward", given, given.frame(), output=output)
    return output


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    bytes_of_row = given.value.shape[3] * 4
    return f"{given.logits[..., 0].numel():,} warps; a row is {-(-bytes_of_row // 128)} access of a warp, not 32"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("cuda_rows")
