"""Sine embeddings of pixels and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMAGE_TEMPERATURE = 20.0
BOX_TEMPERATURE = 10000.0


def sine_embedding(
    angles: Tensor,  # [...], radians
    num_features: int,
    temperature: float,
) -> Tensor:
    """Return sine and cosine, interleaved, of `angles` divided by powers of the temperature.

    Returns:
        [..., num_features] float32.
    """
    exponent = 2 * torch.arange(num_features // 2, dtype=torch.float32, device=angles.device) / num_features
    scaled = angles.float()[..., None] / temperature**exponent
    return torch.stack([scaled.sin(), scaled.cos()], -1).flatten(-2)


def image_position(
    padding: Tensor,  # [B, H, W] bool, True = padding
    num_features: int,
) -> Tensor:
    """Embed each pixel's row and column, counted over the valid pixels of its image.

    Positions reach 2 pi at the image's edge, not at the batch's (DETR, with DINO's temperature of 20).

    Returns:
        [B, H, W, num_features] float32, the row's half first.
    """
    valid = (~padding).float()
    halves = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        edge = count.narrow(axis, count.shape[axis] - 1, 1)
        halves.append(sine_embedding(2 * math.pi * count / (edge + 1e-6), num_features // 2, IMAGE_TEMPERATURE))
    return torch.cat(halves, -1)


def box_position(
    boxes_cxcywh: Tensor,  # [..., 4] in 0..1
    hidden_dim: int,
) -> Tensor:
    """Embed a box, hidden_dim / 2 features per coordinate in the order y, x, w, h (DAB-DETR).

    Returns:
        [..., 2 * hidden_dim] float32.
    """
    cx, cy, w, h = (2 * math.pi * boxes_cxcywh).unbind(-1)
    return sine_embedding(torch.stack([cy, cx, w, h], -1), hidden_dim // 2, BOX_TEMPERATURE).flatten(-2)
