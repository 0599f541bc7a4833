"""DINO: a thin, readable detector (arXiv 2203.03605) on the kernels of `dino_kernels`."""

# ruff: noqa: F401 - what is imported for type checkers is public
from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino import checkpoint as checkpoint
    from dino.checkpoint import build_model, load_checkpoint, load_model, save_model
    from dino.inference.detections import Detections
    from dino.inference.detector import Detector
    from dino.model import (
        DINO,
        PRESETS,
        DetectionOutput,
        LossWeights,
        MatchCost,
        ModelConfig,
        SetCriterion,
        build_criterion,
        model_config,
        postprocess,
    )

# Module: its public names. Imported on first use, so that `python -m dino --help` does not import torch.
_PUBLIC = {
    "dino.checkpoint": "build_model load_checkpoint load_model save_model",
    "dino.inference.detections": "Detections",
    "dino.inference.detector": "Detector",
    "dino.model": "DINO PRESETS DetectionOutput LossWeights MatchCost ModelConfig SetCriterion build_criterion "
    "model_config postprocess",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = ["checkpoint", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

# The packages of the extra "detector", by the names they are imported under.
_NEEDED = {"PIL": "pillow", "safetensors": "safetensors", "faster_coco_eval": "faster-coco-eval"}
_NEEDED |= {"tqdm": "tqdm", "tyro": "tyro"}
if missing := [package for module, package in _NEEDED.items() if find_spec(module) is None]:
    raise ImportError(
        f'dino needs {", ".join(missing)}. Install the detector\'s packages: pip install "dino-kernels[detector]"'
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("dino_kernels").__version__
    if name == "checkpoint":
        return importlib.import_module("dino.checkpoint")
    if name not in _HOMES:
        raise AttributeError(f"module 'dino' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
