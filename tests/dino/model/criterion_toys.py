"""Random predictions and ground truth for the criterion, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

import dino
from dino.model.denoising import Denoising
from dino.model.outputs import DenoisingOutput, DetectionOutput
from dino_kernels import PackedTargets

CLASSES = 5
LAYERS = 2


def targets_of(*counts: int, seed: int = 2) -> list[dict[str, Tensor]]:
    """Draw so many boxes per image."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.2,
            "labels": torch.randint(CLASSES, (n,), generator=generator),
        }
        for n in counts
    ]


def outputs_of(
    images: int, queries: int, *, encoder: bool = True, denoising_of: PackedTargets | None = None
) -> DetectionOutput:
    """Draw predictions of two layers, and of the encoder and denoising if requested, on the default device."""
    torch.manual_seed(4)

    def drawn(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(*shape, CLASSES), torch.rand(*shape, 4) * 0.4 + 0.2

    outputs = DetectionOutput(*drawn(LAYERS, images, queries))
    if encoder:
        outputs.encoder_logits, outputs.encoder_boxes_cxcywh = drawn(images, queries)
    if denoising_of is not None:
        made = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES))(denoising_of)
        drawn_denoising = drawn(LAYERS, images, made.layout.num_queries)
        outputs.denoising = DenoisingOutput(*drawn_denoising, made.layout, made.target, made.in_group)
    return outputs
