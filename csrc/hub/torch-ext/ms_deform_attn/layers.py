"""The layer that transformers' models look up by its name."""

from __future__ import annotations

from torch import Tensor, nn

from .functions import ms_deform_attn


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention with the signature of transformers' layer of the same name."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(
        self,
        value: Tensor,  # [B, S, M, D]
        value_spatial_shapes: Tensor,  # [L, 2] (H, W)
        value_spatial_shapes_list: list[tuple],  # as a list, which needs no copy from the device
        level_start_index: Tensor,  # [L]
        sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
        attention_weights: Tensor,  # [B, Q, M, L, P]
        im2col_step: int,
    ) -> Tensor:
        """Return the weighted sum of samples, [B, Q, M * D]."""
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)
