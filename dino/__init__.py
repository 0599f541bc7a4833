"""DINO: a thin, readable detector (arXiv 2203.03605) on the kernels of `dino_kernels`."""

from dino import checkpoint
from dino.checkpoint import load_checkpoint, load_model, save_model
from dino.config import PRESETS, ModelConfig, model_config
from dino.criterion import LossWeights, SetCriterion, build_criterion
from dino.detections import Detections
from dino.detector import Detector
from dino.matching import MatchCost
from dino.model import DINO, build_model
from dino.outputs import DetectionOutput
from dino.postprocess import postprocess

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
