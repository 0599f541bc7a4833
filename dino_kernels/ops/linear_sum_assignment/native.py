"""The call of the native op, which the CPU and the CUDA backend share: the dispatcher picks the kernel by device."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels.ops._core.layout import contiguous

NAMESPACE = "dino_kernels_native"


def forward(
    cost: Tensor,  # [G, R, C], any strides
    offsets: Tensor | None,  # [B + 1]
    sizes: Tensor | None,  # [G, 2]
    max_rows: int,
    maximize: bool,
    ties: str,
    full: bool,
    *,
    namespace: str = NAMESPACE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Columns [G, R], status [G, B], objective [G, B], duals [G, R] and [G, B, C]; all but two empty unless `full`."""
    return getattr(torch.ops, namespace).linear_sum_assignment(
        cost, contiguous(offsets), contiguous(sizes), None, max_rows, maximize, ties, full
    )
