"""Blocks that several parts share, and their recomputation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block without keeping its activations: the backward pass runs it again (gradient checkpointing)."""
    return checkpoint(block, *inputs, use_reentrant=False) if torch.is_grad_enabled() else block(*inputs)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, added to the input, then layer norm."""

    def __init__(self, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        # In place: a second copy of the widest activation would be kept for the backward pass.
        return self.norm(x + self.linear2(self.linear1(x).relu_()))
