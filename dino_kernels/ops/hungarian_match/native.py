"""CPU and CUDA backends: csrc/hungarian_match, which joins the kernels of the cost and of the assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments as Arguments
from dino_kernels.ops._core.native import CPU, CUDA
from dino_kernels.ops.matching_cost.native import MatchingBackend


class HungarianMatch(MatchingBackend):
    native_ops = ("hungarian_match",)

    def forward(self, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return queries [G, N] and status [G, B]; if `full`, objective [G, B] and duals [G, N] and [G, B, Q]."""
        return self.kernels[0](*self.for_kernel(arguments))


cpu, cuda = HungarianMatch(CPU), HungarianMatch(CUDA)
