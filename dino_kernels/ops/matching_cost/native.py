"""The call of the native op, which the CPU and the CUDA backend share: the dispatcher picks the kernel by device."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels.ops._core.layout import contiguous, dense_last

NAMESPACE = "dino_kernels_native"


def forward(
    logits: list[Tensor],  # each [G_i, B, Q_i, C]
    boxes: list[Tensor],  # each [G_i, B, Q_i, 4], or none
    labels: Tensor,  # [N]
    target_boxes: Tensor | None,  # [N, 4]
    offsets: Tensor,  # [B + 1]
    extra_cost: Tensor | None,  # [G or 1, N, Q]
    max_targets: int,
    class_cost: str,
    formula: list[float],
    *,
    namespace: str = NAMESPACE,
) -> Tensor:
    """Cost of every target with every query of its image, [G, N, Q] float32."""
    cost, _ = getattr(torch.ops, namespace).matching_cost(
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
