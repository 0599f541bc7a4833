"""DINO: a thin, readable detector (arXiv 2203.03605) on the kernels of `dino_kernels`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino import checkpoint
    from dino.checkpoint import build_model, load_checkpoint, load_model, save_model
    from dino.inference.detections import Detections
    from dino.inference.detector import Detector
    from dino.model.config import PRESETS, ModelConfig, model_config
    from dino.model.criterion import LossWeights, MatchCost, SetCriterion, build_criterion
    from dino.model.dino import DINO
    from dino.model.outputs import DetectionOutput
    from dino.model.postprocess import postprocess

# Imported when first asked for: `python -m dino --help` should not wait for torch.
_HOMES = {
    "DINO": "dino.model.dino",
    "PRESETS": "dino.model.config",
    "DetectionOutput": "dino.model.outputs",
    "Detections": "dino.inference.detections",
    "Detector": "dino.inference.detector",
    "LossWeights": "dino.model.criterion",
    "MatchCost": "dino.model.criterion",
    "ModelConfig": "dino.model.config",
    "SetCriterion": "dino.model.criterion",
    "build_criterion": "dino.model.criterion",
    "build_model": "dino.checkpoint",
    "load_checkpoint": "dino.checkpoint",
    "load_model": "dino.checkpoint",
    "model_config": "dino.model.config",
    "postprocess": "dino.model.postprocess",
    "save_model": "dino.checkpoint",
}

__all__ = [
    "DINO",
    "PRESETS",
    "DetectionOutput",
    "Detections",
    "Detector",
    "LossWeights",
    "MatchCost",
    "ModelConfig",
    "SetCriterion",
    "build_criterion",
    "build_model",
    "checkpoint",
    "load_checkpoint",
    "load_model",
    "model_config",
    "postprocess",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name == "checkpoint":
        return importlib.import_module("dino.checkpoint")
    if name not in _HOMES:
        raise AttributeError(f"module 'dino' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
