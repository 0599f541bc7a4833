"""What all forms compute before they sample: masked values, locations and weights, in basic operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fused(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function with the arguments of `fused_ms_deform_attn` of one with those of `classic_arguments`' result.

    `level_start_index` must be None, and shapes are a list.
    """

    def call(
        value: Tensor,  # [B, S, M, D]
        shapes: Sequence[tuple[int, int]],  # L (H, W)
        starts: None,
        reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
        offsets: Tensor,  # [B, Q, M, K, 2]
        logits: Tensor,  # [B, Q, M, K]
        padding: Tensor | None,  # [B, S] bool
        *,
        num_points: Sequence[int],
    ) -> Tensor:
        value, *samples = classic_arguments(value, shapes, reference_points, offsets, logits, padding, num_points)
        return attend(value, shapes, *samples, num_points)

    return call


def classic_arguments(
    value: Tensor,  # [B, S, M, D]
    shapes: Sequence[tuple[int, int]],  # L (H, W)
    reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
    offsets: Tensor,  # [B, Q, M, K, 2]
    logits: Tensor,  # [B, Q, M, K]
    padding: Tensor | None,  # [B, S] bool
    num_points: Sequence[int],  # L
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `dino_kernels.ms_deform_attn`.

    Returns:
        value with zeros for padding; locations [B, Q, M, K, 2] in 0..1 of their levels, and weights [B, Q, M, K], both
        float32. Locations that are NaN, infinite or far outside are just outside, where they contribute nothing.
    """
    if padding is not None:
        value = value.masked_fill(padding[:, :, None, None], 0.0)
    references = reference_points.float()[:, :, None]  # [B, Q, 1, L, 2 or 4]
    if references.shape[-1] == 2:
        scale = 1 / sizes_wh(shapes, value.device)
    else:
        counts = torch.tensor(num_points, dtype=torch.float32, device=value.device)[:, None]
        scale = references[..., 2:] * (0.5 / counts)
    per_level = offsets.float().unflatten(3, (len(shapes), -1))  # [B, Q, M, L, P, 2]
    locations = references[..., None, :2] + per_level * scale[..., None, :]
    locations = locations.nan_to_num(nan=-1.0).clamp(-1, 2).flatten(3, 4)
    return value, locations, logits.float().softmax(-1)


def sizes_wh(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return (W, H) of each level, float32 [L, 2]; in a graph they depend on the size of the images."""
    return torch.tensor([[width, height] for height, width in shapes], dtype=torch.float32, device=device)
