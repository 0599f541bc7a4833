"""Step 8: the real kernel, `dino_kernels.fused_ms_deform_attn`; README.md says where its lines are.

python -m dino_kernels.tutorial.attention.step8_kernel
"""

from __future__ import annotations

from torch import Tensor

from dino_kernels.tutorial.attention.problem import Problem


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]: on a CPU by the compiled kernel, on a GPU by CUDA or Triton; differentiable."""
    return given.kernel("auto")


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    (_, S, _, _), (_, Q, _, K) = given.value.shape, given.logits.shape
    few = 4 * K * Q < 8 * S
    kind = "few: rows stay in place, gradients are gathered" if few else "many: heads are copied, as in step 6"
    return f"{4 * K * Q / S:.1f} reads of a row on average, which is {kind}"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step8_kernel")
