"""What a decoder layer learns from the next layer's boxes, looking forward once and twice."""

from __future__ import annotations

from typing import Any

import torch

from dino.data import Batch
from dino.model.dino import DINO
from dino.visualize.gradients import box_loss_gradients


def look_forward_numbers(model: DINO, batch: Batch) -> dict[str, Any]:
    """Return norms of gradients of the box losses with respect to each decoder layer's parameters.

    Looking forward twice adds the path through the box that the next layer refines: its gradient is the difference to
    looking forward once with the same weights.

    Returns:
        Lists with an entry per layer but the last: `own`, of the layer's own box loss; `content`, of the next layer's,
        through the queries; `box`, of the next layer's, through the box; `cosine` of `box` with `own`.
    """
    once, twice = box_loss_gradients(model, batch.images, batch.mask, batch.targets)
    rows = []
    for layer in range(len(once) - 1):
        own, content = once[layer][layer], once[layer][layer + 1]
        box = twice[layer][layer + 1] - content
        cosine = torch.cosine_similarity(box, own, dim=0)
        rows.append([value.item() for value in (own.norm(), content.norm(), box.norm(), cosine)])
    return dict(zip(("own", "content", "box", "cosine"), map(list, zip(*rows, strict=True)), strict=True))
