"""CPU and CUDA backends: the kernels in csrc/matching_cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.arguments import MatchingCostArguments as Arguments
from dino_kernels.ops._core.layout import contiguous, dense_last
from dino_kernels.ops._core.native import CPU, CUDA, NativeBackend

MAX_SOURCES = 32  # tensors of predictions: their addresses are kernel arguments, which are limited to 4 KB


class MatchingBackend(NativeBackend):
    """The part that `matching_cost` and `hungarian_match` share."""

    first_argument = "logits"

    def exceeded_limit(self, arguments: Any) -> str | None:
        if len(arguments.logits) <= MAX_SOURCES:
            return None
        return f"it takes up to {MAX_SOURCES} tensors of predictions, got {len(arguments.logits)}: stack them into one"

    def for_kernel(self, arguments: Any) -> tuple[Any, ...]:
        """Return the arguments with the strides that kernels take."""
        logits, boxes, labels, target_boxes, offsets, extra_cost, *options = arguments
        targets = labels.contiguous(), contiguous(target_boxes), offsets.contiguous()
        return dense_last(logits), dense_last(boxes), *targets, contiguous(extra_cost), *options


class MatchingCost(MatchingBackend):
    native_ops = ("matching_cost",)

    def forward(self, arguments: Arguments) -> Tensor:
        """Return the cost of every target with every query of its image, [G, N, Q] float32."""
        return self.kernels[0](*self.for_kernel(arguments))[0]


cpu, cuda = MatchingCost(CPU), MatchingCost(CUDA)
