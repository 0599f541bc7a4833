"""CPU and CUDA backends: csrc/hungarian_match, which joins the kernels of the cost and of the assignment."""

from __future__ import annotations

from torch import Tensor

from dino_kernels.ops._core.layout import contiguous, dense_last
from dino_kernels.ops._core.native import CPU, CUDA
from dino_kernels.ops.matching_cost.native import MatchingBackend


class HungarianMatch(MatchingBackend):
    native_ops = ("hungarian_match",)

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
        ties: str,
        full: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return queries [G, N] and status [G, B]; if `full`, objective [G, B] and duals [G, N] and [G, B, Q]."""
        return self.kernels[0](
            dense_last(logits),
            dense_last(boxes),
            labels.contiguous(),
            contiguous(target_boxes),
            offsets.contiguous(),
            contiguous(extra_cost),
            max_targets,
            class_cost,
            formula,
            ties,
            full,
        )


cpu, cuda = HungarianMatch(CPU), HungarianMatch(CUDA)
