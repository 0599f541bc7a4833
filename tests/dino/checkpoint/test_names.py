"""The name tables against the key lists of the official models and the map to detrex and mmdetection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dino.checkpoint.layouts import IGNORED, layout_of, official_table, to_ours
from dino.checkpoint.names import OURS_OFFICIAL, canonical, rename, to_official
from dino.model.config import ModelConfig, model_config
from dino.model.dino import DINO

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {
    "4scale_r50": model_config("dino_4scale_r50"),
    "5scale_r50": model_config("dino_5scale_r50"),
    "4scale_swin_l_384": model_config("dino_4scale_swin_l"),
    "5scale_swin_l_384": model_config("dino_5scale_swin_l"),
    "4scale_convnext_xl": ModelConfig(backbone="convnext_xl"),
}


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def weightless(config: ModelConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return DINO(config).state_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_official_key_maps_to_ours_and_comes_back(name):
    keys = golden(f"keys_dino_{name}")
    for official in keys["keys"]:
        ours = rename(canonical(official), OURS_OFFICIAL, back=True)
        assert ours is not None, official
        assert rename(ours, OURS_OFFICIAL) == canonical(official) == canonical(keys["aliases"].get(official, official))


@pytest.mark.parametrize("name", CONFIGS)
def test_our_models_have_the_official_tensors_and_no_others(name):
    keys = golden(f"keys_dino_{name}")
    unused = {"backbone.0.norm0.weight", "backbone.0.norm0.bias"} if "convnext" in name else set()
    expected = {k: v for k, v in keys["keys"].items() if k not in keys["aliases"] and k not in unused}
    assert {k: list(v.shape) for k, v in to_official(weightless(CONFIGS[name])).items()} == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_with_aliases_the_official_codes_strict_loading_finds_every_key(name):
    ours = weightless(CONFIGS[name])
    official = to_official(ours, aliases=True)
    assert {k: list(v.shape) for k, v in official.items()} == golden(f"keys_dino_{name}")["keys"]
    for alias, original in golden(f"keys_dino_{name}")["aliases"].items():
        assert official[alias] is official[original]
    assert official["bbox_embed.5.layers.2.bias"] is ours["decoder.box_head.layers.2.bias"]


@pytest.mark.parametrize(("layout", "column"), [("detrex", 1), ("mmdet", 2)])
def test_every_detrex_and_mmdet_key_maps_to_the_official_one_and_back(layout, column):
    table = official_table(layout, num_decoder_layers=6, num_backbone_levels=3)
    lines = [line for line in golden("key_mapping_detrex_mmdet")["map"] if line[column]]
    assert len(lines) > 600
    for line in lines:
        for theirs in line[column]:
            official = rename(theirs, table, back=True)
            assert official is not None, theirs
            assert canonical(official) == canonical(line[0])
            back = rename(official, table)
            assert back in line[column]


@pytest.mark.parametrize(("layout", "column"), [("detrex", 1), ("mmdet", 2)])
def test_whole_lists_are_recognised_and_lead_to_our_model(layout, column):
    names = [theirs for line in golden("key_mapping_detrex_mmdet")["map"] for theirs in line[column]]
    assert layout_of(names) == layout
    found, unknown = to_ours(layout, dict.fromkeys(names))
    lacking = {f"neck.projections.{level}.conv.bias" for level in range(4)} if layout == "mmdet" else set()
    assert unknown == []
    assert set(found) == set(weightless(CONFIGS["4scale_r50"])) - lacking
    assert len(found["decoder.class_head.bias"]) == (6 if layout == "mmdet" else 12)
    assert "5" in found["decoder.class_head.bias"][-1]
    assert all("6" in name for name in found["query_selection.class_head.bias"])


def test_the_extra_level_of_five_scales_is_found_behind_four_backbone_levels():
    names = [f"neck.convs.{level}.conv.weight" for level in range(4)] + ["neck.extra_convs.0.conv.weight"]
    found, _ = to_ours("detrex", names)
    assert found["neck.projections.4.conv.weight"] == ["neck.extra_convs.0.conv.weight"]


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["transformer.level_embed", "input_proj.0.0.weight"], "official"),
        (["backbone.conv1.weight", "neck.projections.0.conv.weight"], "dino"),
        (["backbone.conv1.weight", "fc.bias"], None),
    ],
)
def test_a_layout_is_recognised_by_its_names(names, layout):
    assert layout_of(names) == layout


def test_counters_and_derived_buffers_are_ignored_and_weights_are_not():
    assert IGNORED.fullmatch("backbone.layer1.0.bn1.num_batches_tracked")
    assert IGNORED.fullmatch("layers.0.blocks.1.attn_mask")
    assert not any(
        IGNORED.fullmatch(name)
        for name in golden("keys_dino_4scale_r50")["keys"] | golden("keys_dino_4scale_convnext_xl")["keys"]
    )


@pytest.mark.parametrize(
    "overrides",
    [{"query_selection": "static"}, {"query_selection": "pure"}, {"denoising": "off"}, {"backbone": "resnet_tiny"}],
    ids=str,
)
def test_the_names_of_every_variant_come_back(overrides):
    size = {"backbone": "resnet18", "hidden_dim": 64, "num_queries": 10}
    ours = DINO(ModelConfig(**(size | overrides))).state_dict()
    assert {rename(name, OURS_OFFICIAL, back=True) for name in to_official(ours)} == set(ours)


def test_a_part_of_the_gradients_is_converted_without_copying():
    gradients = {"decoder.class_head.bias": torch.zeros(91), "encoder.layers.3.ffn.norm.weight": torch.ones(256)}
    official = to_official(gradients)
    assert official["transformer.decoder.class_embed.0.bias"] is gradients["decoder.class_head.bias"]
    assert official["transformer.encoder.layers.3.norm2.weight"] is gradients["encoder.layers.3.ffn.norm.weight"]
    assert len(official) == 2


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"decoder.norm.weight": None}, {}, "got None for decoder.norm.weight"),
        ({"decoder.nrom.weight": torch.ones(1)}, {}, "not names of this package's models: decoder.nrom.weight"),
        ({"decoder.class_head.bias": torch.ones(1)}, {"aliases": True}, "Pass num_decoder_layers"),
    ],
    ids=["none", "foreign", "uncounted"],
)
def test_to_official_names_what_it_cannot_convert(tensors, options, message):
    with pytest.raises(ValueError, match=message):
        to_official(tensors, **options)


def test_aliases_of_a_part_are_made_for_the_given_number_of_layers():
    official = to_official({"decoder.class_head.bias": torch.ones(1)}, aliases=True, num_decoder_layers=2)
    assert sorted(official) == [f"{stem}class_embed.{i}.bias" for stem in ("", "transformer.decoder.") for i in (0, 1)]
