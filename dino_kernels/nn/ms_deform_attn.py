"""`MSDeformAttn`, a drop-in for the module of Deformable DETR and its family."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_kernels.ops.fused_ms_deform_attn import fused_ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, a drop-in for the module of Deformable DETR and its family.

    Same arguments, parameter names, initialisation and results as the original
    (`models/ops/modules/ms_deform_attn.py` of Deformable-DETR), so checkpoints and optimiser groups
    that go by name keep working. Differences: no constraint on the batch size, no host sync, 16-bit
    dtypes, and a CPU kernel.

    Args:
        d_model: channels C of query and value.
        n_levels: feature levels L.
        n_heads: attention heads M; divides `d_model`.
        n_points: samples per head and level; an int, or one count per level.
        backend: passed to `fused_ms_deform_attn`.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int | list[int] = 4,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"MSDeformAttn: d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        points = [n_points] * n_levels if isinstance(n_points, int) else list(n_points)
        if len(points) != n_levels:
            raise ValueError(f"MSDeformAttn: n_points must be an int or {n_levels} counts, got {n_points}")
        self.im2col_step = 64  # part of the original's interface; nothing here needs it
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.backend = backend
        self._points_per_level = points
        self.sampling_offsets = nn.Linear(d_model, n_heads * sum(points) * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * sum(points))
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        # Head m looks along the ray of angle 2 pi m / M, scaled to the unit square; point p lies p + 1 pixels out.
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().max(-1, keepdim=True).values  # [M, 2]
        steps = torch.cat([torch.arange(1, points + 1, dtype=torch.float32) for points in self._points_per_level])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((rays[:, None] * steps[None, :, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.zeros_(self.value_proj.bias)
        nn.init.xavier_uniform_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
        input_flatten: Tensor,  # [B, S, C]
        input_spatial_shapes: Tensor | list[tuple[int, int]],  # [L, 2] (H, W)
        input_level_start_index: Tensor | None = None,  # [L]
        input_padding_mask: Tensor | None = None,  # [B, S], True = padding
    ) -> Tensor:
        """Attend from each query to samples around its reference point.

        Returns:
            [B, Q, C].

        Raises:
            ValueError, TypeError: a malformed argument, named as in `fused_ms_deform_attn`.
        """
        value = self.value_proj(input_flatten).unflatten(-1, (self.n_heads, -1))
        offsets, logits = self._project_query(query)
        output = fused_ms_deform_attn(
            value,
            input_spatial_shapes,
            input_level_start_index,
            reference_points,
            offsets.unflatten(-1, (self.n_heads, -1, 2)),
            logits.unflatten(-1, (self.n_heads, -1)),
            input_padding_mask,
            num_points=self._points_per_level,
            backend=self.backend,
        )
        return self.output_proj(output)

    def _project_query(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets [B, Q, M * K * 2] and logits [B, Q, M * K], as one matrix product where that is the same."""
        layers = (self.sampling_offsets, self.attention_weights)
        if not all(_is_plain_linear(layer) for layer in layers):
            return self.sampling_offsets(query), self.attention_weights(query)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        projected = F.linear(query, weight, bias)
        offsets, logits = projected.split([layer.out_features for layer in layers], dim=-1)
        return offsets, logits

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}"


def _is_plain_linear(layer: nn.Module) -> bool:
    """False where someone replaced, parametrised or hooked the layer (LoRA, quantisation): then it must be called."""
    return (
        type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and layer.bias is not None
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )
