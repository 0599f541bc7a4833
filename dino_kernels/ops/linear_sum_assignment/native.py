"""CPU and CUDA backends: the kernels in csrc/linear_sum_assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments
from dino_kernels.ops._core.layout import contiguous
from dino_kernels.ops._core.native import CPU, CUDA, NativeBackend


class LinearSumAssignment(NativeBackend):
    native_ops = ("linear_sum_assignment",)
    first_argument = "cost"

    def forward(self, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return columns [G, R] and status [G, B]; if `full`, objective [G, B] and duals [G, R] and [G, B, C]."""
        cost, offsets, sizes, *options = arguments
        return self.kernels[0](cost, contiguous(offsets), contiguous(sizes), None, *options)


cpu, cuda = LinearSumAssignment(CPU), LinearSumAssignment(CUDA)
