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
    ties: str,
    full: bool,
    *,
    namespace: str = NAMESPACE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries [G, N], status [G, B], objective [G, B], duals [G, N] and [G, B, Q]; all but two empty unless `full`."""
    return getattr(torch.ops, namespace).hungarian_match(
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
