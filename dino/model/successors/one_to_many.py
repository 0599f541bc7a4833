"""Match a target with several queries, in the one call that matches everything (H-DETR, arXiv 2207.13080).

A target is repeated k times, and the copies are matched one to one: the k queries of least cost. Sets of predictions
differ in k (layers of the decoder, the encoder, a second branch); where a set has fewer copies than others, an infinite
cost forbids the rest, so all sets still share the targets of one call. As in Align-DETR (arXiv 2304.07527), copies take
at most half of the queries:

    copies of a target of image b in set g = min(k_g, max(1, floor(Q_g / 2 / targets of b)))

The extra cost of all sets is a tensor [G, N k, Q]: for 14 sets of up to 1,500 queries, 14 targets and k = 6, that is
7 MB; with a capacity of 200 targets, 100 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dino_kernels.targets import PackedTargets


def repeat_rows(rows: Tensor, copies: int) -> Tensor:
    """Return [N * copies, ...]: each row of [N, ...] `copies` times in succession."""
    return rows[:, None].expand(-1, copies, *rows.shape[1:]).flatten(0, 1)


def repeat_targets(targets: PackedTargets, copies: int) -> PackedTargets:
    """Return each target `copies` times in succession; unused rows of a capacity stay at the end."""
    boxes = targets.boxes_cxcywh
    return replace(
        targets,
        labels=repeat_rows(targets.labels, copies),
        boxes_cxcywh=None if boxes is None else repeat_rows(boxes, copies),
        offsets=targets.offsets * copies,
        max_targets=targets.max_targets * copies,
        counts=None if targets.counts is None else tuple(copies * count for count in targets.counts),
    )


def copies_cost(
    copies: Sequence[int],  # of a target in each set, k_g
    queries: Sequence[int],  # of each set, Q_g
    targets: PackedTargets,
    extra_cost: Tensor | None,  # [G, N, Q] of the targets before they are repeated
) -> Tensor:
    """Return the extra cost of the repeated targets: infinite for the copies that a set does not have.

    Returns:
        [G, N * max(copies), max(queries)] float32.
    """
    most, device = max(copies), targets.labels.device
    image = targets.image_of_each().clamp(max=targets.num_images - 1)
    copy = torch.arange(most, device=device)
    # Queries that an image's targets take with this copy; the first copy is never one too many.
    taken = targets.offsets.diff()[image, None] * ((copy + 1) * (copy > 0))  # [N, k]
    kinds = {kind: (copy >= kind[0]) | (taken > kind[1] // 2) for kind in zip(copies, queries, strict=True)}
    is_extra = torch.stack([kinds[kind] for kind in zip(copies, queries, strict=True)])  # [G, N, k]
    cost = torch.zeros(is_extra.shape, dtype=torch.float32, device=device).masked_fill(is_extra, torch.inf)
    if extra_cost is None:
        return cost[..., None].expand(-1, -1, -1, max(queries)).flatten(1, 2)
    return (cost[..., None] + extra_cost[:, :, None]).flatten(1, 2)
