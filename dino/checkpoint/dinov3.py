"""Read DINOv3's ConvNeXt weights (arXiv 2508.10104) into ConvNeXt-T, -S, -B and -L backbones.

The weights have a licence of their own and are not downloaded here. Get a file from their authors, in their format or
in that of transformers, and pass it with `--model.backbone convnext_t --backbone-weights FILE`. The networks are those
of the ConvNeXt paper, and the files differ in names alone: the authors' have the last norm, which detectors do not use,
a second time as `norms.3`; transformers has names of its own.
"""

from __future__ import annotations

import re

_UNUSED = re.compile(r"(?:norms\.\d+|layer_norm)\.(?:weight|bias)")
_TRANSFORMERS = re.compile(r"(?:model\.)?stages\.(?P<stage>\d+)\.(?P<part>downsample_layers|layers)\.(?P<rest>.+)")
_PARTS = {
    "depthwise_conv": "dwconv",
    "layer_norm": "norm",
    "pointwise_conv1": "pwconv1",
    "pointwise_conv2": "pwconv2",
}


def backbone_name(name: str) -> str | None:
    """Return our name of a tensor of such a file, None for those of the unused norm; other names stay as they are."""
    if _UNUSED.fullmatch(name):
        return None
    match = _TRANSFORMERS.fullmatch(name)
    if match is None:
        return name
    if match["part"] == "downsample_layers":
        return f"downsample_layers.{match['stage']}.{match['rest']}"
    parts = [_PARTS.get(part, part) for part in match["rest"].split(".")]
    return f"stages.{match['stage']}.{'.'.join(parts)}"
