"""DINO: a thin, readable detector (arXiv 2203.03605) on the kernels of `dino_kernels`."""

from dino.checkpoint import load_checkpoint
from dino.config import PRESETS, ModelConfig, model_config
from dino.criterion import LossWeights, SetCriterion, build_criterion
from dino.matching import MatchCost
from dino.model import DINO, build_model
from dino.outputs import DetectionOutput
from dino.postprocess import postprocess

__all__ = [
    "DINO",
    "PRESETS",
    "DetectionOutput",
    "LossWeights",
    "MatchCost",
    "ModelConfig",
    "SetCriterion",
    "build_criterion",
    "build_model",
    "load_checkpoint",
    "model_config",
    "postprocess",
]
