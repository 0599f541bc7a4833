"""Blocks that several parts share, and their recomputation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TILE = 1024
"""Tokens of which the feed-forward network is computed at once, for inference on a CPU."""


def recompute(block: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Run a block without keeping its activations: the backward pass runs it again (gradient checkpointing)."""
    return checkpoint(block, *inputs, use_reentrant=False) if torch.is_grad_enabled() else block(*inputs)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # see FeedForward
        for layer in self.layers[:-1]:
            rows = layer(rows).relu_()
        return self.layers[-1](rows).unflatten(0, x.shape[:-1])


class HeadPerLayer(nn.ModuleList):
    """Heads of their own for the decoder layers, in place of one that all layers share."""

    def forward(self, states: Tensor) -> Tensor:
        """Apply head i to `states[i]`, [layers, ..., C]; there may be fewer layers than heads."""
        return torch.stack([head(of_layer) for head, of_layer in zip(self, states, strict=False)])


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, added to the input, then layer norm."""

    def __init__(self, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        # Of rows: with more dimensions, linear layers return a view, and a ReLU in place copies gradients five times.
        rows = x.flatten(0, -2)
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The hidden activations of a tile stay in the processor's cache; nothing keeps them for a backward pass.
            return torch.cat([self._of_rows(tile) for tile in rows.split(TILE)]).view_as(x)
        return self._of_rows(rows).view_as(x)

    def _of_rows(self, rows: Tensor) -> Tensor:
        return self.norm(rows + self.linear2(self.linear1(rows).relu_()))


def self_attention(
    module: nn.MultiheadAttention,
    query: Tensor,  # [B, Q, C], of queries and keys
    value: Tensor,  # [B, Q, C]
    mask: Tensor | None,  # [Q, Q] or [B, M, Q, Q], added to the logits; with further keys [Q, T + Q]
    further: tuple[Tensor, Tensor] | None = None,  # [T, C] keys and values that all attend to, before those of queries
) -> Tensor:
    """Return what the module does, [B, Q, C]: with one projection for queries and keys, and no transposed copies."""
    channels = module.embed_dim
    weights = module.in_proj_weight.split([2 * channels, channels])
    biases = module.in_proj_bias.split([2 * channels, channels])
    heads = (module.num_heads, module.head_dim)
    query, key = F.linear(query, weights[0], biases[0]).unflatten(-1, (2, *heads)).transpose(1, 3).unbind(2)
    value = F.linear(value, weights[1], biases[1]).unflatten(-1, heads).transpose(1, 2)
    if further is not None:
        added = (
            F.linear(further[0], weights[0][channels:], biases[0][channels:]),
            F.linear(further[1], weights[1], biases[1]),
        )
        key, value = (
            torch.cat([new.unflatten(-1, heads).transpose(0, 1).expand(len(old), -1, -1, -1), old], 2)
            for new, old in zip(added, (key, value), strict=True)
        )
    attended = F.scaled_dot_product_attention(query, key, value, mask)
    return module.out_proj(attended.transpose(1, 2).flatten(2))
