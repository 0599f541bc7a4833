"""Memory fusion: the decoder attends to all layers of the encoder (Stable-DINO, arXiv 2304.04742).

Switch `memory_fusion`. With the encoder's input x_0 and the outputs x_1 ... x_n of its layers, the memory is

    LayerNorm(W [x_0, x_1, ..., x_n] + b),   W [C, (n + 1) C]

instead of x_n alone: layers close to the backbone train early, before those after them produce anything useful.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MemoryFusion(nn.Module):
    """One linear layer from the tokens of all layers to the memory, and layer norm."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.project = nn.Linear((num_layers + 1) * channels, channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.project.bias)

    def forward(
        self,
        tokens: Sequence[Tensor],  # num_layers + 1 times [B, S, C]: the encoder's input and each layer's output
    ) -> Tensor:
        """Return the memory, [B, S, C]."""
        return self.norm(self.project(torch.cat(list(tokens), -1)))
