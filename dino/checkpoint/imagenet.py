"""Build models, with ImageNet weights in the backbone from a local file or the authors' servers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import nn

from dino.checkpoint import dinov3
from dino.checkpoint.layouts import IGNORED
from dino.checkpoint.read import CheckpointError, read_tensors
from dino.common.download import DownloadError, download
from dino.common.text import shorten
from dino.model.config import ModelConfig, model_config
from dino.model.dino import DINO

_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_CONVNEXT = "https://dl.fbaipublicfiles.com/convnext/"
_RESNET = "https://download.pytorch.org/models/"
# The official code's initial weights, or the same kind for other sizes. ResNets are torchvision's IMAGENET1K_V1.
URLS = {
    "resnet18": _RESNET + "resnet18-f37072fd.pth",
    "resnet34": _RESNET + "resnet34-b627a593.pth",
    "resnet50": _RESNET + "resnet50-0676ba61.pth",
    "resnet101": _RESNET + "resnet101-63fe2227.pth",
    "swin_t": _SWIN + "swin_tiny_patch4_window7_224.pth",
    "swin_s": _SWIN + "swin_small_patch4_window7_224.pth",
    "swin_b": _SWIN + "swin_base_patch4_window12_384_22k.pth",
    "swin_l": _SWIN + "swin_large_patch4_window12_384_22k.pth",
    "convnext_t": _CONVNEXT + "convnext_tiny_1k_224_ema.pth",
    "convnext_s": _CONVNEXT + "convnext_small_1k_224_ema.pth",
    "convnext_b": _CONVNEXT + "convnext_base_22k_224.pth",
    "convnext_l": _CONVNEXT + "convnext_large_22k_224.pth",
    "convnext_xl": _CONVNEXT + "convnext_xlarge_22k_224.pth",
}

_CLASSIFIER = re.compile(r"(fc|head|norm)\.(weight|bias)")
_OUTPUT_NORM = re.compile(r"norm\d\.")
_STAGE = re.compile(r"(?:layer|layers\.|stages\.|downsample_layers\.)(\d+)\.(downsample\.)?")


def load_backbone_weights(backbone: nn.Module, name: str, source: str | os.PathLike[str] | None = None) -> None:
    """Load ImageNet weights into a backbone. The norms of its outputs, which classifiers lack, keep their values.

    Args:
        backbone: a result of `build_backbone`.
        name: its name.
        source: a local copy of the authors' file; None downloads it once. For ConvNeXt also a file of DINOv3.

    Raises:
        ValueError: no weights were published for this name.
        FileNotFoundError: the local file does not exist.
        ConnectionError: the download failed.
        CheckpointError: the file does not fit this backbone, which is then unchanged.
    """
    path = _download(name) if source is None else Path(source)
    expected = {key: value for key, value in backbone.state_dict().items() if not IGNORED.fullmatch(key)}
    last = max(_stage(key) for key in expected)
    tensors = read_tensors(path).tensors
    if name.startswith("convnext"):
        named = {key: dinov3.backbone_name(key) for key in tensors}
        tensors = {ours: tensors[key] for key, ours in named.items() if ours is not None}
    given = {
        key: value
        for key, value in tensors.items()
        if not IGNORED.fullmatch(key) and not _CLASSIFIER.fullmatch(key) and _stage(key) <= last
    }
    differences = {
        "missing": [key for key in expected if key not in given and not _OUTPUT_NORM.match(key)],
        "unexpected": [key for key in given if key not in expected and not _OUTPUT_NORM.match(key)],
        "of another shape": [
            f"{key} is {list(expected[key].shape)} in the backbone, {list(value.shape)} in the file"
            for key, value in given.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    if any(differences.values()):
        found = "; ".join(f"{kind}: {shorten(keys)}" for kind, keys in differences.items() if keys)
        raise CheckpointError(f"{path}: not the weights of {name}: {found}")
    backbone.load_state_dict(given, strict=False)


def _stage(name: str) -> int:
    """Return the stage of a parameter, from 0. Patch merging after a Swin stage belongs to the next stage."""
    match = _STAGE.match(name)
    if match is None:
        return 0
    first = 1 if re.match(r"layer\d", name) else 0
    return int(match[1]) - first + (1 if match[2] else 0)


def _download(name: str) -> Path:
    if name not in URLS:
        raise ValueError(
            f"no ImageNet weights were published for {name}. Start from random weights with pretrained_backbone=False."
        )
    try:
        return download(URLS[name], what=f"ImageNet weights of {name}")
    except DownloadError as error:
        raise DownloadError(
            f"{error}, pass its path as backbone_weights (--backbone-weights), or start from random weights with "
            "pretrained_backbone=False (--model.no-pretrained-backbone)."
        ) from error


def build_model(
    preset: str | ModelConfig,
    *,
    backbone_weights: str | Path | None = None,
    **overrides: object,
) -> DINO:
    """Build a new model, with ImageNet weights in the backbone unless `pretrained_backbone=False`.

    Args:
        preset: a name of `dino.PRESETS`, or a configuration.
        backbone_weights: a local file with the backbone's ImageNet weights, in place of the download.
        overrides: fields of `ModelConfig` to replace.

    Raises:
        ValueError: a preset or field is unknown.
        FileNotFoundError, ConnectionError: the backbone weights are missing or could not be downloaded.
    """
    config = model_config(preset, **overrides)
    model = DINO(config)
    if config.pretrained_backbone or backbone_weights is not None:
        load_backbone_weights(model.backbone, config.backbone, backbone_weights)
    return model
