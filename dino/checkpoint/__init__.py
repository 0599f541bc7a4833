"""Loading and saving models: folders of this package, and files of the official code, detrex and mmdetection."""

from dino.checkpoint.folder import load_model, save_model
from dino.checkpoint.imagenet import build_model
from dino.checkpoint.load import LoadReport, load_checkpoint
from dino.checkpoint.names import to_official
from dino.checkpoint.read import CheckpointError

__all__ = [
    "CheckpointError",
    "LoadReport",
    "build_model",
    "load_checkpoint",
    "load_model",
    "save_model",
    "to_official",
]
