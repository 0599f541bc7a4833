"""ConvNeXt as detectors use it, with the parameter names of the official checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.backbones.base import Backbone
from dino.model.layers import recompute


class ConvNeXt(Backbone):
    """Stages of large depthwise convolutions; each returned map is layer-normalised.

    Args:
        channels, levels, gradient_checkpointing: as in `Backbone`.
        depths: blocks per stage.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        levels: Sequence[int],
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(channels, levels, gradient_checkpointing)
        used = range(max(levels) + 1)
        self.downsample_layers = nn.ModuleList(_downsample(channels, stage) for stage in used)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(channels[stage]) for _ in range(depths[stage]))) for stage in used
        )
        for stage in levels:
            self.add_module(f"norm{stage}", MapNorm(channels[stage]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map [B, channels, floor(H / stride), floor(W / stride)] per level.

        Raises:
            ValueError: images smaller than the last stride.
        """
        smallest = 4 * 2 ** max(self.levels)
        if min(images.shape[-2:]) < smallest:
            raise ValueError(
                f"images must be at least {smallest} pixels high and wide, got {list(images.shape)}. Resize them."
            )
        x = images
        outputs = []
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = downsample(x)
            for block in stage.children():
                x = recompute(block, x) if self.gradient_checkpointing else block(x)
            if index in self.levels:
                outputs.append(self.get_submodule(f"norm{index}")(x).contiguous())
        return outputs


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm and a two-layer network, scaled per channel and added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * self.pwconv2(F.gelu(hidden))).permute(0, 3, 1, 2)


def _downsample(channels: Sequence[int], stage: int) -> nn.Sequential:
    """Return the entry of a stage: patches of 4x4 pixels for the first, of 2x2 for later ones."""
    if stage == 0:
        return nn.Sequential(nn.Conv2d(3, channels[0], 4, 4), MapNorm(channels[0]))
    return nn.Sequential(MapNorm(channels[stage - 1]), nn.Conv2d(channels[stage - 1], channels[stage], 2, 2))
