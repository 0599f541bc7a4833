"""CPU and CUDA backends: the kernels in csrc/matching_cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_kernels.ops._core.layout import contiguous, dense_last
from dino_kernels.ops._core.native import CPU, CUDA, NativeBackend

MAX_SOURCES = 32  # tensors of predictions: their addresses are kernel arguments, which are limited to 4 KB


class MatchingBackend(NativeBackend):
    """The part that `matching_cost` and `hungarian_match` share."""

    first_argument = "logits"

    def exceeded_limit(self, *arguments: Any) -> str | None:
        if len(arguments[0]) <= MAX_SOURCES:
            return None
        return f"it takes up to {MAX_SOURCES} tensors of predictions, got {len(arguments[0])}: stack them into one"


class MatchingCost(MatchingBackend):
    native_ops = ("matching_cost",)

    def forward(
        self,
        logits: list[Tensor],  # each [G_i, B, Q_i, C]
        boxes: list[Tensor],  # each [G_i, B, Q_i, 4], or none
        labels: Tensor,  # [N]
        target_boxes: Tensor | None,  # [N, 4]
        offsets: Tensor,  # [B + 1]
        extra_cost: Tensor | None,  # [G or 1, N, Q]
        max_targets: int,
        class_cost: str,
        formula: list[float],
    ) -> Tensor:
        """Return the cost of every target with every query of its image, [G, N, Q] float32."""
        cost, _ = self.kernels[0](
            dense_last(logits),
            dense_last(boxes),
            labels.contiguous(),
            contiguous(target_boxes),
            offsets.contiguous(),
            contiguous(extra_cost),
            max_targets,
            class_cost,
            formula,
        )
        return cost


cpu, cuda = MatchingCost(CPU), MatchingCost(CUDA)
