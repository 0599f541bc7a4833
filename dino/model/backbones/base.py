"""Interface of all backbones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Backbone(nn.Module):
    """From images [B, 3, H, W] to one map [B, channels, H / stride, W / stride] per level.

    ResNet and Swin round the size up, ConvNeXt down.

    Args:
        channels: of each stage.
        levels: stages to return; stage 0 has stride 4, stage 3 stride 32. Stages after the last one are not built.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, channels: Sequence[int], levels: Sequence[int], gradient_checkpointing: bool) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = [channels[stage] for stage in levels]
        self.strides = [4 * 2**stage for stage in levels]
        self.gradient_checkpointing = gradient_checkpointing
