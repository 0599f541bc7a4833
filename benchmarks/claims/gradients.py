"""What a decoder layer learns from the next layer's boxes, looking forward once and twice."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dino.data import Batch
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO


def look_forward_gradients(model: DINO, batch: Batch) -> dict[str, Any]:
    """Return norms of gradients of the box losses with respect to each decoder layer's parameters.

    Looking forward twice adds the path through the box that the next layer refines: its gradient is the difference to
    looking forward once with the same weights.

    Returns:
        Lists with an entry per layer but the last: `own`, of the layer's own box loss; `content`, of the next layer's,
        through the queries; `box`, of the next layer's, through the box; `cosine` of `box` with `own`.
    """
    once, twice = (box_gradients(model, batch, look_forward) for look_forward in ("once", "twice"))
    rows = []
    for layer in range(len(once) - 1):
        own, content = once[layer][0], once[layer][1]
        box = twice[layer][1] - content
        cosine = torch.cosine_similarity(box, own, dim=0)
        rows.append([value.item() for value in (own.norm(), content.norm(), box.norm(), cosine)])
    return dict(zip(("own", "content", "box", "cosine"), map(list, zip(*rows, strict=True)), strict=True))


def box_gradients(model: DINO, batch: Batch, look_forward: str) -> list[list[Tensor]]:
    """Return, for each decoder layer, the gradients of its own and the next layer's box loss, each one vector."""
    config = dataclasses.replace(model.config, look_forward=look_forward)  # pyright: ignore[reportArgumentType]
    other = DINO(config).eval()
    other.load_state_dict(model.state_dict())
    criterion = SetCriterion(config)
    table = criterion(other(batch.images, batch.mask), batch.targets).table
    weights = criterion.weights[1:3, :1]  # L1 and GIoU
    losses = (weights * table[1:3, : config.num_decoder_layers]).sum(0)
    result = []
    for index, layer in enumerate(other.decoder.layers):
        parameters = list(layer.parameters())
        vectors = []
        for loss in losses[index : index + 2]:
            each = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            vectors.append(torch.cat([gradient.flatten() for gradient in each]))
        result.append(vectors)
    return result
