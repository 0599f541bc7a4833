"""CPU and CUDA backends: the kernels in csrc/linear_sum_assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.layout import contiguous
from dino_kernels.ops._core.native import CPU, CUDA, NativeBackend


class LinearSumAssignment(NativeBackend):
    native_ops = ("linear_sum_assignment",)
    first_argument = "cost"

    def forward(
        self,
        cost: Tensor,  # [G, R, C], any strides
        offsets: Tensor | None,  # [B + 1]
        sizes: Tensor | None,  # [G, 2]
        max_rows: int,
        maximize: bool,
        ties: str,
        full: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return columns [G, R] and status [G, B]; if `full`, objective [G, B] and duals [G, R] and [G, B, C]."""
        return self.kernels[0](cost, contiguous(offsets), contiguous(sizes), None, max_rows, maximize, ties, full)


cpu, cuda = LinearSumAssignment(CPU), LinearSumAssignment(CUDA)
