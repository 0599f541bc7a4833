"""The paper's model: configuration, network and losses. `README.md` gives the reading order."""

from dino.model.config import PRESETS, ModelConfig, model_config
from dino.model.criterion import LossWeights, MatchCost, SetCriterion, build_criterion
from dino.model.dino import DINO
from dino.model.outputs import DetectionOutput
from dino.model.postprocess import postprocess

__all__ = [
    "DINO",
    "PRESETS",
    "DetectionOutput",
    "LossWeights",
    "MatchCost",
    "ModelConfig",
    "SetCriterion",
    "build_criterion",
    "model_config",
    "postprocess",
]
