"""Mixed matching: one to many in the encoder and all layers but the last (Align-DETR, arXiv 2304.07527).

Switch `mixed_matching`, the number k of queries of a target there (2 in the paper); the last layer keeps one, and the
model needs no non-maximum suppression. Of the queries of a target, the one whose box and class fit best counts fully,
and the others less: by the rank r = 0, 1, ... of their target t (`classification.py`),

    t' = t exp(-r / 1.5),   and the L1 and GIoU loss of the query are multiplied by exp(-r / 1.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

TAU = 1.5


@torch.no_grad()
def rank_weights(
    targets: Tensor,  # [sets, N * k] t of each pair, the k queries of a target in succession
    exists: Tensor,  # [sets, N * k] bool
    copies: int,  # k
) -> Tensor:
    """Return exp(-rank / 1.5) of each pair among those of its target, [sets, N * k]; 1 where it is alone."""
    of_each = targets.where(exists, -1).unflatten(1, (targets.shape[1] // copies, copies))
    order = of_each.argsort(dim=-1, descending=True, stable=True)
    return torch.exp(order.argsort(-1).to(targets) / -TAU).flatten(1)
