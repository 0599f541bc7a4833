"""Step 3: softmax, positions, corners and weights in one pass of C++: offsets and logits in, rows and weights out.

python -m dino_kernels.tutorial.attention.step3_softmax
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_kernels.tutorial.attention import call
from dino_kernels.tutorial.attention.problem import Problem
from dino_kernels.tutorial.attention.step2_vectors import rows_and_zeros
from dino_kernels.tutorial.counting import size


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; forward only."""
    (B, Q, M, K) = given.logits.shape
    rows = torch.empty(B, Q, M, 4 * K, dtype=torch.int32)
    weights = torch.empty(B, Q, M, 4 * K)
    call.run("step3_softmax.cpp", "forward", given, given.frame(), rows=rows, weights=weights)
    gathered = F.embedding(rows, rows_and_zeros(given.value))  # [B, Q, M, 4 K, D], as before
    return torch.einsum("bqmkd,bqmk->bqmd", gathered, weights).flatten(2)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    samples = given.logits.numel()
    return f"{size(samples * 3 * 4)} read and {size(samples * 8 * 4)} written, in one pass"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step3_softmax")
