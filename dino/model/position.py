"""Sine embeddings of pixels and of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dino.model.foreach import foreach_add, foreach_div

BOX_TEMPERATURE = 10000.0


def wavelengths(num_features: int, temperature: float, device: torch.device) -> Tensor:
    """Return 1 / (2 pi) times powers of the temperature, the first 1, [num_features / 2] float32."""
    exponent = torch.arange(0, 1 - 1 / num_features, 2 / num_features, dtype=torch.float32, device=device)
    return temperature**exponent / (2 * math.pi)


def sine_embedding(
    positions: Tensor,  # [...] in 0..1
    wavelengths: Tensor,  # [F / 2]
) -> Tensor:
    """Return sine and cosine, interleaved, of the positions divided by the wavelengths, [..., F] float32."""
    scaled = positions.float()[..., None] / wavelengths
    return torch.stack([scaled.sin(), scaled.cos()], -1).flatten(-2)


def pixel_counts(
    padding: Tensor,  # [B, S] bool, True = padding
    shapes: Sequence[tuple[int, int]],  # (H, W) per level
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each pixel's row and column, counted from 1 over the image's valid pixels; per level [B, H, W] float32."""
    parts = (~padding).float().split([height * width for height, width in shapes], 1)
    valid = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
    return [each.cumsum(1) for each in valid], [each.cumsum(2) for each in valid]


def image_position(
    rows: Sequence[Tensor],  # of `pixel_counts`
    columns: Sequence[Tensor],
    num_features: int,
    temperature: float = 20.0,
    offset: float = 0.0,
) -> Tensor:
    """Embed the row and column of each pixel of all levels.

    Positions reach 2 pi at the image's edge, not at the batch's (DETR, with DINO's temperature of 20). `offset` is
    added to rows and columns, but not to the image's size.

    Returns:
        [B, S, num_features] float32, the row's half first.
    """
    edges = [count[:, -1:] for count in rows] + [count[:, :, -1:] for count in columns]
    counts = [*rows, *columns] if offset == 0 else foreach_add([*rows, *columns], offset)
    shares = foreach_div(counts, foreach_add(edges, 1e-6))
    shares = [share.flatten(1) for share in shares]
    halves = torch.stack([torch.cat(shares[: len(rows)], 1), torch.cat(shares[len(rows) :], 1)], -1)
    lengths = wavelengths(num_features // 2, temperature, halves.device)
    return sine_embedding(halves, lengths).flatten(-2)


def box_position(
    boxes_cxcywh: Tensor,  # [..., 4] in 0..1
    wavelengths: Tensor,  # [F / 2], with BOX_TEMPERATURE
) -> Tensor:
    """Embed a box, F features per coordinate in the order y, x, w, h (DAB-DETR); [..., 4 * F] float32."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return sine_embedding(torch.stack([cy, cx, w, h], -1), wavelengths).flatten(-2)
