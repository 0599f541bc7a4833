"""Random predictions and ground truth for the criterion, without a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import dino
from dino.model.criterion import SetCriterion
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


def assert_what_is_not_finite_is_not_matched(
    criterion: SetCriterion, outputs: DetectionOutput, targets: PackedTargets, broken: str
) -> None:
    """Break one matched prediction of the last layer, `outputs.<broken>`: two images with 2 and 3 targets."""
    healthy = criterion.match(outputs.logits, outputs.boxes_cxcywh, targets)
    unlucky = int(healthy[1, 0])
    getattr(outputs, broken)[1, 0, unlucky] = math.nan
    matched = criterion.match(outputs.logits, outputs.boxes_cxcywh, targets)
    assert torch.equal(matched[0], healthy[0]) and torch.equal(matched[1, 2:], healthy[1, 2:])
    assert (matched >= 0).all() and unlucky not in matched[1, :2].tolist()
