"""`MSDeformAttn`, a drop-in for the module of Deformable DETR and its family."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dino_kernels.ops._checks import check_choice, check_count, check_number
from dino_kernels.ops.fused_ms_deform_attn import backends, fused_ms_deform_attn

OP = "MSDeformAttn"


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, a drop-in for the module of Deformable DETR and its family.

    Arguments, parameter names, initialisation and results are those of the original
    (`models/ops/modules/ms_deform_attn.py` of Deformable-DETR), so checkpoints and optimiser groups by name keep
    working. Differences: any batch size, no synchronisation with the host, 16-bit dtypes, and a CPU kernel.

    Args:
        d_model: channels C of query and value.
        n_levels: feature levels L.
        n_heads: attention heads M; must divide `d_model`.
        n_points: samples per head and level; an int, or a list with one count per level.
        ratio: channels of the projected value as a part of `d_model`, as in ViT-Adapter.
        backend: passed to `fused_ms_deform_attn`.

    Raises:
        ValueError, TypeError: an argument is not of these values.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int | list[int] = 4,
        ratio: float = 1.0,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, count in (("d_model", d_model), ("n_levels", n_levels), ("n_heads", n_heads)):
            check_count(OP, name, count, least=1)
        if d_model % n_heads != 0:
            raise ValueError(f"{OP}: d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        points = list(n_points) if isinstance(n_points, (list, tuple)) else [n_points] * n_levels
        for count in points:
            check_count(OP, "n_points", count)
        if len(points) != n_levels:
            raise ValueError(f"{OP}: n_points must be an int or {n_levels} counts, got {n_points}")
        if sum(points) == 0:
            raise ValueError(f"{OP}: n_points must not all be 0, got {n_points}")
        check_number(OP, "ratio", ratio, least=0)
        channels = int(d_model * ratio)
        if channels == 0 or channels % n_heads != 0:
            raise ValueError(
                f"{OP}: int(d_model * ratio) must be a positive multiple of n_heads = {n_heads}, got {channels} = "
                f"int({d_model} * {ratio})"
            )
        check_choice(OP, "backend", backend, ("auto", *backends.modules))
        self.im2col_step = 64  # part of the original's interface; unused
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.ratio = ratio
        self.backend = backend
        self._points_per_level = points
        self.sampling_offsets = nn.Linear(d_model, n_heads * sum(points) * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * sum(points))
        self.value_proj = nn.Linear(d_model, channels)
        self.output_proj = nn.Linear(channels, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters as the original does: offsets along rays, uniform attention weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        # Samples of head m lie on the ray of angle 2 pi m / M, scaled to the unit square; point p is p + 1 pixels out.
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

    _reset_parameters = reset_parameters  # the original's name, by which its models call it

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
        input_flatten: Tensor,  # [B, S, C]
        input_spatial_shapes: Tensor | list[tuple[int, int]],  # [L, 2] (H, W)
        input_level_start_index: Tensor | None = None,  # [L]
        input_padding_mask: Tensor | None = None,  # [B, S], True = padding
    ) -> Tensor:
        """Sum values sampled around the reference point of each query.

        Returns:
            [B, Q, C].

        Raises:
            ValueError, TypeError: a malformed argument, named as in `fused_ms_deform_attn`.
        """
        for name, features in (("query", query), ("input_flatten", input_flatten)):
            if not isinstance(features, Tensor) or features.dim() != 3 or features.shape[2] != self.d_model:
                got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
                rows = "Q" if name == "query" else "S"
                raise ValueError(f"{OP}: {name} must be a tensor [B, {rows}, C] with C = {self.d_model}, got {got}")
        value = self.value_proj(input_flatten).unflatten(-1, (self.n_heads, -1))
        output = fused_ms_deform_attn(
            value,
            input_spatial_shapes,
            input_level_start_index,
            reference_points,
            self.sampling_offsets(query).unflatten(-1, (self.n_heads, -1, 2)),
            self.attention_weights(query).unflatten(-1, (self.n_heads, -1)),
            input_padding_mask,
            num_points=self._points_per_level,
            backend=self.backend,
        )
        return self.output_proj(output)

    def extra_repr(self) -> str:
        ratio = "" if self.ratio == 1 else f", ratio={self.ratio}"
        sizes = f"d_model={self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}"
        return sizes + ratio
