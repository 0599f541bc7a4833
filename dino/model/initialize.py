"""Initial weights of a new model (the official model's, after its fix of the deformable attention's)."""

from __future__ import annotations

import math

import torch
from torch import nn

from dino.model.decoder import Decoder
from dino.model.denoising import Denoising
from dino.model.encoder import Encoder
from dino.model.layers import MLP
from dino.model.query_selection import QuerySelection, random_anchors
from dino_kernels.nn import MSDeformAttn


@torch.no_grad()
def initialize(encoder: Encoder, selection: QuerySelection, decoder: Decoder, denoising: Denoising | None) -> None:
    """Draw every weight except those of the backbone and the neck, which their constructors draw."""
    for part in (encoder, selection, decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in part.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()  # its offsets look along rays: xavier would undo that
    nn.init.normal_(encoder.level_embed)
    if denoising is not None:
        nn.init.normal_(denoising.label_embed.weight)
    _initialize_heads(decoder.class_head, decoder.box_head)
    if selection.variant == "static":
        selection.anchors.weight.copy_(random_anchors(selection.num_queries))
    else:
        selection.class_head.load_state_dict(decoder.class_head.state_dict())
        selection.box_head.load_state_dict(decoder.box_head.state_dict())


def _initialize_heads(class_head: nn.Linear, box_head: MLP) -> None:
    """Start every class at probability 0.01 and every box at its anchor."""
    class_head.reset_parameters()
    nn.init.constant_(class_head.bias, -math.log(99))
    layers = [layer for layer in box_head.layers if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.reset_parameters()
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
