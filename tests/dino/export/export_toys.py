"""Models of a few layers, one per variant, and their export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino.data import Categories, EvalTransform
from dino.export.export import Exported, export_model
from dino.model.backbones import CONVNEXTS, SWINS
from dino.model.config import ModelConfig, model_config
from dino.model.dino import DINO

CATEGORIES = Categories((3, 7, 40), ("cat", "dog", "a horse"))
TRANSFORM = EvalTransform(64, 107)
SIZE = (96, 128)
SMALL: dict[str, Any] = {
    "hidden_dim": 32,
    "num_heads": 4,
    "ffn_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_queries": 20,
    "num_classes": 3,
}
# The backbones of presets with as few blocks as have all kinds of them: shifted windows need two.
SMALL_SWIN = (32, (2, 1, 1, 1), (1, 2, 4, 8), 4)
SMALL_CONVNEXT = ((32, 64, 96, 128), (1, 1, 1, 1))
# Each has several departures from the small model, because an export takes seconds.
VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {"backbone": "resnet18", "num_decoder_layers": 2},
    "5 scales, pure, once, no denoising": {
        "num_levels": 5,
        "backbone_levels": (0, 1, 2, 3),
        "query_selection": "pure",
        "look_forward": "once",
        "denoising": "off",
    },
    "swin, static": {"backbone": "swin_t", "query_selection": "static"},
    "convnext, 4 scales": {"backbone": "convnext_t", "num_levels": 4},
}


def small_model(monkeypatch: Any = None, **fields: Any) -> DINO:
    """Return a model of random weights, the heads' included, so that boxes and scores differ."""
    config: ModelConfig = model_config("dino_tiny", **{**SMALL, **fields})
    if monkeypatch is not None:
        monkeypatch.setitem(SWINS, "swin_t", SMALL_SWIN)
        monkeypatch.setitem(CONVNEXTS, "convnext_t", SMALL_CONVNEXT)
    torch.manual_seed(0)
    model = DINO(config).eval()
    for part in (model.encoder, model.query_selection, model.decoder):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.15)
    nn.init.zeros_(model.decoder.class_head.get_parameter("bias"))  # scores around 0.5, where a difference shows most
    return model


def export(model: DINO, path: Path, **options: Any) -> Exported:
    """Export a model, by default at a fixed size, which is traced in a quarter of the time."""
    return export_model(model, path, CATEGORIES, TRANSFORM, **{"size": SIZE, **options})
