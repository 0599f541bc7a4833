"""DINO: a thin, readable detector (arXiv 2203.03605) on the kernels of `dino_kernels`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino import checkpoint
    from dino.checkpoint import load_checkpoint, load_model, save_model
    from dino.config import PRESETS, ModelConfig, model_config
    from dino.criterion import LossWeights, SetCriterion, build_criterion
    from dino.detections import Detections
    from dino.detector import Detector
    from dino.matching import MatchCost
    from dino.model import DINO, build_model
    from dino.outputs import DetectionOutput
    from dino.postprocessing import postprocess

# Imported when first asked for: `python -m dino --help` should not wait for torch.
_HOMES = {
    "DINO": "dino.model",
    "PRESETS": "dino.config",
    "DetectionOutput": "dino.outputs",
    "Detections": "dino.detections",
    "Detector": "dino.detector",
    "LossWeights": "dino.criterion",
    "MatchCost": "dino.matching",
    "ModelConfig": "dino.config",
    "SetCriterion": "dino.criterion",
    "build_criterion": "dino.criterion",
    "build_model": "dino.model",
    "load_checkpoint": "dino.checkpoint",
    "load_model": "dino.checkpoint",
    "model_config": "dino.config",
    "postprocess": "dino.postprocessing",
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
