"""Models of detrex and mmdetection, loaded by their names, have the outputs of their code (golden/other_code.npz).

The stored outputs are of their modules in float64, filled by name as here; `made_by` in the file has the versions.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dino
from dino.checkpoint import load_checkpoint
from dino.checkpoint.layouts import VARIANTS
from dino.model.backbones.base import Backbone
from dino.model.backbones.swin import Swin
from dino.model.dino import DINO
from dino.model.neck import Neck
from tests.dino.checkpoint.test_load import in_layout
from tests.dino.golden import fill

STORED = np.load(Path(__file__).parents[1] / "golden" / "other_code.npz")
SIZE = (160, 224)
SMALL = {"num_encoder_layers": 2, "num_decoder_layers": 3, "ffn_dim": 96, "num_queries": 12, "num_classes": 80}


class Features(Backbone):
    """Stands for a backbone: returns the features that detrex' modules were given."""

    sizes = ((20, 28), (10, 14), (5, 7))

    def __init__(self) -> None:
        super().__init__((8, 16, 24, 32), (1, 2, 3), gradient_checkpointing=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features of three levels, made by name."""
        maps = [
            np.concatenate([fill.image(f"level{level}.{index}", *size) for index in range(11)])
            for level, size in enumerate(self.sizes)
        ]
        return [torch.from_numpy(m[None, :n]).to(images) for m, n in zip(maps, self.channels, strict=True)]


def build(which: str, layout: str) -> DINO:
    """Build our model of the stored one's architecture."""
    options: dict[str, Any] = SMALL | VARIANTS[layout]
    model = dino.build_model("dino_4scale_r50", pretrained_backbone=False, **options)
    if which != "mmdet_r50":
        model.backbone = Features() if which == "detrex" else Swin(8, (1, 2, 1, 1), (1, 2, 4, 8), 3, (1, 2, 3))
        model.neck = Neck(model.backbone.channels, model.config.hidden_dim, model.config.num_levels)
    return model.eval()


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return tensors whose values follow from their names; each layer's heads have their own."""
    tensors = {}
    for name, shape in shapes.items():
        middle, size = fill.rule(name, shape)
        head = re.match(r"transformer\.decoder\.(class|bbox)_embed", name)
        stream = fill.u_stream(name.removeprefix("transformer.decoder.") if head else name, int(np.prod(shape)))
        tensors[name] = torch.from_numpy((middle + size * stream).astype(np.float32).reshape(shape))
    return tensors


def images() -> tuple[Tensor, Tensor]:
    """Return two images, one of them padded, and their masks."""
    pictures = torch.from_numpy(np.stack([fill.image(f"picture{index}", *SIZE) for index in range(2)])).double()
    mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[1, 128:] = mask[1, :, 200:] = True
    return pictures * ~mask[:, None], mask


@pytest.mark.parametrize("which", ["detrex", "mmdet_r50", "mmdet_swin"])
@torch.no_grad()
def test_a_model_loaded_by_their_names_has_their_outputs(which):
    model = build(which, layout := which.partition("_")[0])
    theirs = in_layout(model, layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items() if tensor.is_floating_point()}
    listed = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert [zlib.crc32(listed.encode()), len(shapes)] == STORED[f"{which}.names"].tolist()
    report = load_checkpoint(model, filled(shapes))
    assert report.missing == report.unexpected == report.reinitialised == ()
    count = 1 if which == "detrex" else 2  # it ignores padding outside of training
    outputs = model.double()(*(tensor[:count] for tensor in images()))
    for ours, name in ((outputs.logits, "logits"), (outputs.boxes_cxcywh, "boxes")):
        np.testing.assert_allclose(ours, STORED[f"{which}.{name}"], rtol=0, atol=1e-5)
