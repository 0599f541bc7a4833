"""What all backbones have in common."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """From images [B, 3, H, W] to one map [B, channels, H / stride, W / stride] per level.

    ResNet and Swin round the size up, ConvNeXt down.
    """

    channels: list[int]
    strides: list[int]
