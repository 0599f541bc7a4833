"""Swin and ConvNeXt by name, in the configurations of the published detectors."""

from __future__ import annotations

from collections.abc import Sequence

from dino.backbone_convnext import ConvNeXt
from dino.backbone_swin import Swin

# name: channels of stage 0, blocks per stage, heads per stage, window. B and L are those of 384-pixel pre-training.
SWINS = {
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
# name: channels and blocks per stage
CONVNEXTS = {
    "convnext_t": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_s": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_b": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_l": ((192, 384, 768, 1536), (3, 3, 27, 3)),
    "convnext_xl": ((256, 512, 1024, 2048), (3, 3, 27, 3)),
}


def build_transformers_backbone(
    name: str, levels: Sequence[int], *, gradient_checkpointing: bool = False
) -> Swin | ConvNeXt:
    """A Swin or ConvNeXt with random weights.

    Args:
        name: swin_{t,s,b,l} or convnext_{t,s,b,l,xl}.
        levels: stages to return, 0 to 3 in rising order; stage 0 has stride 4, stage 3 stride 32.
        gradient_checkpointing: recompute each block in the backward pass.

    Returns:
        A module from images [B, 3, H, W] to one [B, channels, H / stride, W / stride] per level, with the
        attributes `channels` and `strides`. All its parameters are used; none is frozen.

    Raises:
        ValueError: an unknown name.
    """
    if name in SWINS:
        return Swin(*SWINS[name], levels, gradient_checkpointing=gradient_checkpointing)
    if name in CONVNEXTS:
        return ConvNeXt(*CONVNEXTS[name], levels, gradient_checkpointing=gradient_checkpointing)
    raise ValueError(f"backbone must be one of {[*SWINS, *CONVNEXTS]}, got {name!r}")
