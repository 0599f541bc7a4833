"""Backbones by name."""

from __future__ import annotations

from collections.abc import Sequence

from dino.model.backbones.base import Backbone
from dino.model.backbones.convnext import ConvNeXt
from dino.model.backbones.resnet import RESNETS, ResNet
from dino.model.backbones.swin import Swin

# Name: channels of stage 0, blocks per stage, heads per stage, window. B and L are those of 384-pixel pre-training.
SWINS = {
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
# Name: channels and blocks per stage.
CONVNEXTS = {
    "convnext_t": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_s": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_b": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_l": ((192, 384, 768, 1536), (3, 3, 27, 3)),
    "convnext_xl": ((256, 512, 1024, 2048), (3, 3, 27, 3)),
}
BACKBONES = (*RESNETS, *SWINS, *CONVNEXTS)


def build_backbone(
    name: str, levels: Sequence[int], *, gradient_checkpointing: bool = False, freeze_stem: bool = True
) -> Backbone:
    """Return a backbone with random weights.

    Args:
        name: one of `BACKBONES`.
        levels, gradient_checkpointing: as in `Backbone`.
        freeze_stem: as in `ResNet`; the others have no constant parts.

    Raises:
        ValueError: an unknown name, or levels that are not stages 0 to 3 in ascending order.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {list(BACKBONES)}, got {name!r}")
    if list(levels) != sorted(set(levels)) or not set(levels) <= {0, 1, 2, 3}:
        raise ValueError(f"backbone_levels must be stages 0 to 3 in ascending order, got {tuple(levels)}")
    if name in SWINS:
        return Swin(*SWINS[name], levels, gradient_checkpointing=gradient_checkpointing)
    if name in CONVNEXTS:
        return ConvNeXt(*CONVNEXTS[name], levels, gradient_checkpointing=gradient_checkpointing)
    return ResNet(name, levels, gradient_checkpointing=gradient_checkpointing, freeze_stem=freeze_stem)
