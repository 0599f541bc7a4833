"""Counts of parameters and operations: against the model itself, by hand, and the paper."""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache

import pytest
import torch

from dino.commands.summary import PUBLISHED, Counts, Published, summarise
from dino.model.config import PRESETS, model_config
from dino.model.dino import DINO
from dino_kernels.nn import MSDeformAttn
from tests.dino.tools_toys import TINY, tiny_model


def part(summary, name):
    (found,) = (part for part in summary.parts if part.name == name)
    return found


SIZE = (800, 1333)
# One of each kind; the others differ in numbers alone.
SUMMARISED = ("dino_4scale_r50", "dino_5scale_r50", "dino_4scale_swin_t", "dino_tiny")


summarise_once = lru_cache(summarise)


def summary_of(preset):
    return summarise_once(preset, SIZE)


@pytest.fixture
def four_scale():
    return summary_of("dino_4scale_r50")


def test_parameters_are_those_of_the_paper(four_scale):
    assert (four_scale.total.parameters, four_scale.total.trainable) == (46_893_182, 46_670_782)
    assert four_scale.published.parameters == "47M"


@pytest.mark.parametrize("preset", SUMMARISED)
def test_every_parameter_belongs_to_one_part(preset):
    with torch.device("meta"):
        model = DINO(PRESETS[preset])
    summary = summary_of(preset)
    assert summary.total.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.total.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    backbone = part(summary, "backbone")
    stages = [p for p in summary.parts if p.depth == 1 and p.name.startswith(("stem", "patches", "stage"))]
    assert sum(stage.parameters for stage in stages) == backbone.parameters
    # Neck and heads too are the sum of what is listed below them.
    assert sum(p.parameters for p in summary.parts if p.name.startswith("level")) == part(summary, "neck").parameters
    assert part(summary, "classes").parameters + part(summary, "boxes").parameters == part(summary, "heads").parameters


@pytest.mark.parametrize("preset", SUMMARISED)
def test_operations_of_stages_add_up(preset):
    summary = summary_of(preset)
    stages = [p for p in summary.parts if p.depth == 1 and p.name.startswith(("stem", "patches", "stage"))]
    assert sum(stage.flops for stage in stages) == part(summary, "backbone").flops
    assert sum(p.flops for p in summary.parts if p.name.startswith("level")) == part(summary, "neck").flops


def test_operations_are_as_counted_by_hand(four_scale):
    # 800x1333: the stem gives 400x667; stage 1 to 3 100x167, 50x84, 25x42; the fourth level 13x21.
    assert part(four_scale, "stem").flops == 2 * 64 * 3 * 49 * 400 * 667
    assert part(four_scale, "level 0").flops == 2 * 512 * 256 * 100 * 167
    assert part(four_scale, "level 3").flops == 2 * 2048 * 256 * 9 * 13 * 21
    tokens = 100 * 167 + 50 * 84 + 25 * 42 + 13 * 21
    assert tokens == 22_223 and part(four_scale, "encoder").output == (tokens, 256)
    # Per token and layer: offsets and weights, value and output projection, FFN, and 128 samples of 4 corners.
    linear = 2 * (256 * (256 + 128) + 2 * 256 * 256 + 2 * 256 * 2048)
    assert part(four_scale, "encoder").flops == 6 * tokens * (linear + 8 * 16 * 4 * (2 * 32 + 2))
    assert part(four_scale, "classes").flops == 6 * 900 * 2 * 256 * 91
    assert part(four_scale, "boxes").flops == (5 + 6) * 900 * 2 * (
        2 * 256 * 256 + 256 * 4
    )  # refinement, then predictions
    assert part(four_scale, "denoising").flops == 0


@pytest.mark.parametrize("preset", ["dino_4scale_r50", "dino_5scale_r50"])
def test_the_total_fits_the_papers_in_the_papers_convention(preset):
    published = PUBLISHED[preset]
    assert published.image_size is not None
    gmacs = summarise_once(preset, published.image_size).total.flops / 2e9
    assert gmacs == pytest.approx(published.gflops, rel=0.02)


def test_shapes_are_those_of_the_stages(four_scale):
    assert part(four_scale, "stem").output == (64, 200, 334)
    assert part(four_scale, "stage 0").output == (256, 200, 334)
    assert part(four_scale, "stage 3").output == (2048, 25, 42)
    swin = summary_of("dino_4scale_swin_t")
    assert part(swin, "patches").output == (96, 200, 334)
    assert part(swin, "stage 3").output == (768, 25, 42)
    assert part(summary_of("dino_tiny"), "level 2").output == (128, 25, 42)


def test_counting_without_data_is_counting_with_data():
    real = Counts(tiny_model(), torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    whole = sum(part.flops for part in real.parts() if part.depth == 0)
    assert summarise_once(TINY, (64, 96)).total.flops == whole == sum(real.counts["DINO"].values()) > 0


def test_the_reference_backend_is_counted_like_the_kernels():
    ours = summarise_once(TINY, (64, 96)).total.flops
    reference = tiny_model()
    for module in reference.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = "reference"
    counts = Counts(reference, torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    assert sum(counts.counts["DINO"].values()) == ours


@pytest.mark.parametrize(
    "change",
    [
        {"query_selection": "pure"},
        {"query_selection": "static"},
        {"denoising": "off"},
        {"backbone": "convnext_t", "num_levels": 5},
        {"shared_heads": False, "relation_bias": True, "memory_fusion": True, "hybrid_queries": 10},
        {"multi_route": True},
    ],
    ids=str,
)
def test_variants_are_summarised_whole(change):
    config = model_config(TINY, **change)
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in DINO(config).parameters())
    summary = summarise(config, (256, 256))
    assert summary.total.parameters == expected
    assert any(p.name == "denoising" for p in summary.parts) == (config.denoising != "off")
    assert ("one pair for all" in part(summary, "heads").what) == config.shared_heads


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_its_width_and_has_both_conventions(four_scale, width):
    lines = four_scale.table(width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    assert f"the total is {four_scale.total.flops / 2e9:.1f}" in text and f"{four_scale.total.flops / 1e9:.1f}" in text
    assert "47M parameters, 279 GFLOPs" in text
    (total,) = (line for line in lines if line.startswith("total"))
    assert re.split(r"\s+", total) == ["total", "46.89M", "46.67M", f"{four_scale.total.flops / 1e9:.1f}"]
    (start,) = (i for i, line in enumerate(lines) if line.lstrip().startswith("stage 0"))
    assert "frozen" in lines[start] + lines[start + 1]


def test_models_of_ones_own_have_no_published_numbers(monkeypatch):
    tiny = PRESETS["dino_tiny"]
    monkeypatch.setitem(PUBLISHED, "dino_tiny", Published("1M"))
    assert summarise(tiny, (64, 64)).published == Published("1M")
    assert summarise(dataclasses.replace(tiny, num_queries=10), (64, 64)).published is None


def test_wrong_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="perhaps you meant 'dino_4scale_r50'"):
        summarise("dino_4scale_r5")
    with pytest.raises(ValueError, match="at least 32 pixels"):
        summarise("dino_tiny", (10, 100))
