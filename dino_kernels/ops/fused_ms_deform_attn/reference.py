"""The definition of `fused_ms_deform_attn`, in plain PyTorch: locations, softmax, mask, then the classic op."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import FusedMSDeformAttnArguments as Arguments
from dino_kernels.ops._core.arguments import MSDeformAttnArguments
from dino_kernels.ops._core.dtypes import compute_dtype
from dino_kernels.ops.ms_deform_attn import reference as classic


def forward(arguments: Arguments) -> Tensor:
    """Return the weighted sum of samples, [B, Q, M * D]; see `dino_kernels.fused_ms_deform_attn`."""
    value, spatial_shapes, level_sizes, starts, num_points, reference_points, offsets, logits, value_mask = arguments
    compute = compute_dtype(value.dtype)
    if value_mask is not None:
        value = value.masked_fill(value_mask[:, :, None, None], 0.0)
    weights = logits.to(compute).softmax(-1)
    shapes = classic.host_shapes(spatial_shapes, level_sizes)
    locations = sampling_locations(shapes, num_points, reference_points, offsets.to(compute))
    levels = spatial_shapes, level_sizes, starts, num_points
    return classic.forward(MSDeformAttnArguments(value, *levels, locations, weights))


def sampling_locations(
    shapes: list[tuple[int, int]],  # [L] (H, W)
    num_points: list[int],  # [L]
    reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
    sampling_offsets: Tensor,  # [B, Q, M, K, 2]
) -> Tensor:
    """Return locations [B, Q, M, K, 2], in [0, 1] of their levels, from reference points and raw offsets."""
    locations = []
    offsets = sampling_offsets.split(num_points, dim=3)
    for level, ((height, width), offset) in enumerate(zip(shapes, offsets, strict=True)):
        reference = reference_points[:, :, None, level, None]  # [B, Q, 1, 1, 2 or 4]
        if reference.shape[-1] == 2:
            size = offset.new_tensor([width, height])
            locations.append(reference + offset / size)
        else:
            points = max(num_points[level], 1)
            locations.append(reference[..., :2] + offset / points * reference[..., 2:] * 0.5)
    return torch.cat(locations, dim=3)
