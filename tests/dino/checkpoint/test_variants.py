"""Heads of each layer, other positions, and another Swin: what detrex' and mmdetection's models have."""

from __future__ import annotations

import pytest
import torch

from dino.checkpoint import CheckpointError, load_checkpoint
from dino.checkpoint.layouts import VARIANTS, official_merging
from dino.model.backbones.swin import Swin
from tests.dino.checkpoint.test_load import equal, in_layout, small, weights


def test_detrex_into_a_model_of_other_positions_is_for_fine_tuning_only():
    given = in_layout(small(0, num_classes=80), "detrex")
    before = weights(model := small(1, num_classes=80))
    with pytest.raises(CheckpointError, match=r"positions in another way.*position_temperature=10000"):
        load_checkpoint(model, given)
    assert equal(weights(model), before)
    assert "fine-tune before use" in str(load_checkpoint(model, given, strict=False))


@pytest.mark.parametrize("layout", ["official", "detrex", "mmdet"])
def test_heads_of_their_own_go_to_their_layers(layout):
    options = {"num_classes": 80} | VARIANTS["detrex"]
    source, model = small(0, **options), small(1, **options)
    assert len({float(source.state_dict()[f"decoder.class_head.{i}.bias"][0]) for i in range(3)}) == 3
    given = in_layout(source, layout)
    if layout == "official":
        given["label_enc.weight"] = given["label_enc.weight"][:-1]
    load_checkpoint(model, given)
    heads = {name: t for name, t in weights(source).items() if "_head." in name}
    assert equal(heads, {name: t for name, t in weights(model).items() if "_head." in name})


def test_mmdetections_swin_loads_with_its_merging_reordered():
    source, model = small(0, num_classes=80, shared_heads=False), small(1, num_classes=80, shared_heads=False)
    for each in (source, model):
        each.backbone = Swin(8, (1, 2, 1, 1), (1, 2, 4, 8), 3, (1, 2, 3))
    given = in_layout(source, "mmdet")
    assert "backbone.stages.0.blocks.0.ffn.layers.0.0.weight" in given
    # nn.Unfold of x has its channels outermost and rows before columns; the official concatenation of slices has not.
    x = torch.randn(1, 8, 2, 2)
    theirs = torch.nn.functional.unfold(x, 2)[0, :, 0]
    official = torch.cat([x[0, :, i, j] for j in (0, 1) for i in (0, 1)])
    assert torch.equal(official_merging(theirs), official)
    for name in [name for name in given if ".downsample." in name]:
        tensor = given[name]
        given[name] = tensor.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3)
        assert torch.equal(official_merging(given[name]), tensor)
    load_checkpoint(model, given)
    swin = {name: t for name, t in weights(source).items() if name.startswith("backbone")}
    assert equal(swin, {name: t for name, t in weights(model).items() if name.startswith("backbone")})
