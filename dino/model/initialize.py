"""Initial weights of a new model (the official model's, after its fix of the deformable attention's)."""

from __future__ import annotations

import math

import torch
from torch import nn

from dino.model.decoder import Decoder
from dino.model.denoising import Denoising
from dino.model.encoder import Encoder
from dino.model.layers import MLP, HeadPerLayer
from dino.model.query_selection import QuerySelection, random_anchors
from dino.model.successors.hybrid import HybridQueries
from dino.model.successors.multi_route import Routes
from dino_kernels.nn import MSDeformAttn


@torch.no_grad()
def initialize(
    encoder: Encoder,
    selection: QuerySelection,
    decoder: Decoder,
    denoising: Denoising | None,
    hybrid: HybridQueries | None = None,
    routes: Routes | None = None,
) -> None:
    """Draw every weight except those of the backbone and the neck, which their constructors draw."""
    for part in (encoder, selection, decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in part.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()  # its offsets look along rays: xavier would undo that
    if decoder.relation is not None:
        decoder.relation.project.reset_parameters()  # as in the public code
    nn.init.normal_(encoder.level_embed)
    if denoising is not None:
        nn.init.normal_(denoising.label_embed.weight)
    class_heads, box_heads = (_each(head) for head in (decoder.class_head, decoder.box_head))
    _initialize_heads(class_heads[0], box_heads[0])
    if selection.variant == "static":
        selection.anchors.weight.copy_(random_anchors(selection.num_queries))
    else:
        class_heads, box_heads = [*class_heads, selection.class_head], [*box_heads, selection.box_head]
    if routes is not None:
        for parameter in routes.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        if routes.has_heads:
            class_heads, box_heads = [*class_heads, routes.class_head], [*box_heads, routes.box_head]
    for first, *others in (class_heads, box_heads):
        for head in others:
            head.load_state_dict(first.state_dict())
    if hybrid is not None:
        _initialize_heads(hybrid.class_head, hybrid.box_head)


def _each(head: nn.Module) -> list[nn.Module]:
    """Return the heads of the decoder layers, or the one that they share."""
    return list(head) if isinstance(head, HeadPerLayer) else [head]


def _initialize_heads(class_head: nn.Module, box_head: nn.Module) -> None:
    """Start every class at probability 0.01 and every box at its anchor."""
    assert isinstance(class_head, nn.Linear) and isinstance(box_head, MLP)
    class_head.reset_parameters()
    nn.init.constant_(class_head.bias, -math.log(99))
    layers = [layer for layer in box_head.layers if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.reset_parameters()
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
