"""Configuration of a DINO model: one frozen dataclass, and the presets of the paper."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_CHOICES = {
    "query_selection": ("mixed", "pure", "static"),
    "look_forward": ("twice", "once"),
    "denoising": ("contrastive", "plain", "off"),
    "classification": ("focal", "varifocal", "iou_aware", "position", "matchability"),
    "match_cost": ("focal", "position"),
}


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError naming a field, its value and the allowed values, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """A DINO model. The defaults are the paper's 4-scale ResNet-50."""

    backbone: str = "resnet50"
    """Feature extractor, resnet{18,34,50,101}, resnet_tiny, swin_{t,s,b,l}, convnext_{t,s,b,l,xl}."""
    backbone_levels: tuple[int, ...] = (1, 2, 3)
    """Backbone stages to use; stage 0 has stride 4, stage 3 stride 32."""
    num_levels: int = 4
    """Feature levels L of the transformer; levels beyond the backbone's come from stride-2 convolutions."""
    freeze_stem: bool = True
    """Keep the stem and first stage of a pretrained ResNet constant, as published."""
    pretrained_backbone: bool = True
    """Start from ImageNet weights; False starts from random ones."""
    hidden_dim: int = 256
    """Channels C of every token and query."""
    num_heads: int = 8
    """Attention heads M."""
    num_points: int = 4
    """Samples per head and level P of deformable attention."""
    ffn_dim: int = 2048
    """Inner width of the feed-forward networks."""
    num_encoder_layers: int = 6
    """Deformable encoder layers."""
    num_decoder_layers: int = 6
    """Decoder layers; each refines the boxes."""
    num_queries: int = 900
    """Matching queries K, detections per image before the top scores are taken."""
    num_classes: int = 91
    """Classes C; 91 is COCO with category ids used as class indices, as in the paper."""
    query_selection: Literal["mixed", "pure", "static"] = "mixed"
    """Anchors from the encoder with learned content (mixed), both from the encoder (pure), both learned (static)."""
    look_forward: Literal["twice", "once"] = "twice"
    """Whether the loss of a layer also trains the box refinement of the layer before (twice), or not (once)."""
    denoising: Literal["contrastive", "plain", "off"] = "contrastive"
    """Denoising queries in training: positives and negatives (contrastive), positives only (plain), none (off)."""
    num_denoising: int = 100
    """Denoising queries of one kind: there are as many groups as fit in 2 * num_denoising queries."""
    label_noise: float = 0.5
    """Strength of label noise: half of it is the share of denoising labels redrawn."""
    box_noise: float = 1.0
    """Strength of box noise, in halves of the box's width and height."""
    shared_heads: bool = True
    """One pair of heads for all decoder layers; False has one pair per layer, as detrex and mmdetection."""
    position_temperature: float = 20.0
    """Temperature of the sine embedding of pixels; detrex has 10000."""
    position_offset: float = 0.0
    """Added to a pixel's row and column, which count from 1; detrex has -0.5, the pixel's centre."""
    classification: Literal["focal", "varifocal", "iou_aware", "position", "matchability"] = "focal"
    """Classification loss: DINO's focal loss, or one of a successor, whose targets depend on the IoU of the boxes."""
    class_weight: float = 1.0
    """Weight of the classification loss of matching queries and encoder; that of denoising queries is 1."""
    match_cost: Literal["focal", "position"] = "focal"
    """Class cost of the matching: DINO's focal cost, or that of probabilities lowered where boxes do not fit."""
    mixed_matching: int = 1
    """Queries that each box is matched with in the encoder and all decoder layers but the last; Align-DETR has 2."""
    hybrid_queries: int = 0
    """Queries of a second branch in training, each box matched with several; 0: no branch, usual: 1500."""
    hybrid_copies: int = 6
    """Queries of the second branch that each box is matched with."""
    multi_route: bool = False
    """Two more passes through the decoder in training, which match a box with up to six queries."""
    relation_bias: bool = False
    """Bias the decoder's self-attention by the relation of the boxes that the layers before predicted."""
    memory_fusion: bool = False
    """Let the decoder attend to all layers of the encoder, through one linear layer."""
    gradient_checkpointing: bool = False
    """Recompute backbone and encoder layers in the backward pass: saves memory, costs time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone_levels", tuple(self.backbone_levels))  # JSON has no tuples
        require(self.hidden_dim % self.num_heads == 0, "hidden_dim", self.hidden_dim, "a multiple of num_heads")
        require(self.hidden_dim % 32 == 0, "hidden_dim", self.hidden_dim, "a multiple of 32 (group normalisation)")
        require(len(self.backbone_levels) > 0, "backbone_levels", self.backbone_levels, "at least one stage")
        require(
            self.num_levels >= len(self.backbone_levels), "num_levels", self.num_levels, "at least len(backbone_levels)"
        )
        require(self.num_decoder_layers >= 1, "num_decoder_layers", self.num_decoder_layers, "at least 1")
        require(self.num_encoder_layers >= 1, "num_encoder_layers", self.num_encoder_layers, "at least 1")
        require(self.num_queries >= 1, "num_queries", self.num_queries, "at least 1")
        require(self.num_classes >= 1, "num_classes", self.num_classes, "at least 1")
        require(0 <= self.class_weight < math.inf, "class_weight", self.class_weight, "a finite number, at least 0")
        require(self.mixed_matching >= 1, "mixed_matching", self.mixed_matching, "at least 1")
        if self.mixed_matching > 1:  # queries of a box are ranked by their target, which the focal loss has not
            others = f"one of {_CHOICES['classification'][1:]} with mixed_matching above 1"
            require(self.classification != "focal", "classification", self.classification, others)
        require(self.hybrid_queries >= 0, "hybrid_queries", self.hybrid_queries, "at least 0")
        require(self.hybrid_copies >= 1, "hybrid_copies", self.hybrid_copies, "at least 1")
        if self.hybrid_queries > 0:  # their anchors are the encoder's
            others = "mixed or pure with hybrid_queries"
            require(self.query_selection != "static", "query_selection", self.query_selection, others)
        require(self.position_temperature > 0, "position_temperature", self.position_temperature, "above 0")
        require(
            math.isfinite(self.position_offset), "position_offset", self.position_offset, "a finite number of pixels"
        )
        for name, allowed in _CHOICES.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {allowed}")


_FIVE_SCALES = {"backbone_levels": (0, 1, 2, 3), "num_levels": 5}

PRESETS: dict[str, ModelConfig] = {
    "dino_4scale_r50": ModelConfig(),
    # detrex's projects/dino/configs/dino-resnet/dino_r50_4scale_12ep_better_hyper.py, with the official architecture.
    "dino_4scale_r50_tuned": ModelConfig(freeze_stem=False, class_weight=2.0, num_denoising=300),
    "dino_5scale_r50": ModelConfig(**_FIVE_SCALES),
    "dino_4scale_r18": ModelConfig(backbone="resnet18"),
    "dino_4scale_r101": ModelConfig(backbone="resnet101"),
    "dino_4scale_swin_t": ModelConfig(backbone="swin_t"),
    "dino_4scale_swin_l": ModelConfig(backbone="swin_l", gradient_checkpointing=True),
    "dino_5scale_swin_l": ModelConfig(backbone="swin_l", gradient_checkpointing=True, **_FIVE_SCALES),
    # Small enough to learn from scratch on two CPU cores: `python -m dino demo`.
    "dino_tiny": ModelConfig(
        backbone="resnet_tiny",
        pretrained_backbone=False,
        num_levels=3,
        hidden_dim=128,
        num_heads=4,
        ffn_dim=256,
        num_encoder_layers=1,
        num_decoder_layers=3,
        num_queries=60,
        num_classes=10,
        num_denoising=50,
    ),
}


def model_config(preset: str | ModelConfig, **overrides: object) -> ModelConfig:
    """Return a preset, or a given configuration, with some fields replaced.

    Raises:
        ValueError: an unknown preset or field, or a value outside the allowed ones.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}{_hint(preset, PRESETS)}")
    config = PRESETS[preset] if isinstance(preset, str) else preset
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in overrides:
        if name not in fields:
            raise ValueError(f"ModelConfig has no field {name!r}{_hint(name, fields)}; its fields are {fields}")
    return dataclasses.replace(config, **overrides)


def _hint(word: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (perhaps you meant {close[0]!r})" if close else ""
