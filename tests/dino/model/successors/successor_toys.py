"""Stored results of the successors' public code, and the switches that tests of a whole step go through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden/successors.json").read_text())
"""Inputs [2 images, 6 queries, 4 classes] and, by name, `made_by` and the results in float64."""

POSITION: dict[str, Any] = {"classification": "position", "match_cost": "position", "class_weight": 6.0}
SWITCHES: list[dict[str, Any]] = [
    *({"classification": name} for name in ("varifocal", "iou_aware", "matchability")),
    POSITION,
    {"memory_fusion": True, "freeze_stem": False},
    {"classification": "iou_aware", "mixed_matching": 2},
    {"hybrid_queries": 15, "hybrid_copies": 3},
    {"relation_bias": True},
    {"multi_route": True},
]

ALL: dict[str, Any] = {name: value for switches in SWITCHES for name, value in switches.items()}


def stored(name: str) -> Tensor:
    """Return an input of the stored results, in float64."""
    return torch.tensor(GOLDEN[name], dtype=torch.float64)
