"""Loading weights: every source, wrapper and layout, and every choice of classes."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import safetensors.torch
import torch

import dino
from dino.checkpoint import CheckpointError, load_checkpoint, save_model, to_official
from dino.checkpoint.layouts import VARIANTS, official_table
from dino.checkpoint.names import rename
from dino.data.categories import Categories
from dino.model.backbones.convnext import ConvNeXt
from dino.model.backbones.swin import Swin

COCO = Categories.official_coco()
COCO_IDS = [i for i, name in zip(COCO.ids, COCO.names, strict=True) if name != "N/A"]


def small(seed: int = 0, **overrides: Any) -> Any:
    """Every tensor random, so that none can stay behind unseen."""
    size: dict[str, Any] = {
        "hidden_dim": 64,
        "num_heads": 8,
        "ffn_dim": 96,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
    }
    more: dict[str, Any] = {"num_queries": 20, "num_classes": 91, "num_levels": 4}
    model = dino.build_model("dino_tiny", **(size | more | overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def in_layout(model: Any, layout: str) -> dict[str, torch.Tensor]:
    """The weights as another code base would have saved them."""
    if layout == "dino":
        return weights(model)
    official = to_official(weights(model), aliases=True)
    if layout == "official":
        return official
    table = official_table(layout, model.config.num_decoder_layers, len(model.config.backbone_levels))
    theirs = {rename(name, table) or "second name": tensor.clone() for name, tensor in official.items()}
    if layout == "mmdet":
        del theirs["second name"]  # of the heads
        theirs = {
            name: tensor for name, tensor in theirs.items() if not ("neck" in name and name.endswith("conv.bias"))
        }
    else:
        last = model.config.num_decoder_layers
        marker = f"transformer.decoder.{{}}_embed.{last}."
        for kind in ("class", "bbox"):
            for name in [name for name in theirs if name.startswith(marker.format(kind))]:
                theirs[name.removeprefix("transformer.decoder.")] = theirs[name]
    key = "label_enc.weight" if layout == "detrex" else "dn_query_generator.label_embedding.weight"
    theirs[key] = theirs[key][:-1]
    return theirs


WRAPPERS = {
    "bare": lambda tensors: tensors,
    "model": lambda tensors: {"model": tensors, "args": argparse.Namespace(lr=1e-4), "epoch": 11},
    "state_dict": lambda tensors: {"state_dict": tensors, "meta": {"epoch": 12}},
    "ema_model": lambda tensors: {"ema_model": tensors},
    "ddp": lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    "compiled": lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("ending", [".pth", ".pt", None])
def test_official_weights_load_from_any_wrapper(tmp_path, wrapper, ending):
    source = small(0)
    content = WRAPPERS[wrapper](in_layout(source, "official"))
    if ending is not None:
        torch.save(content, tmp_path / f"file{ending}")
        content = tmp_path / f"file{ending}"
    model = small(1)
    report = load_checkpoint(model, content)
    assert equal(weights(model), weights(source))
    assert report.format == "official"
    assert len(report.loaded) == len(source.state_dict())
    assert report.missing == report.unexpected == report.reinitialised == report.notes == ()


@pytest.mark.parametrize("layout", ["dino", "official", "detrex", "mmdet"])
def test_every_layout_gives_the_same_model(tmp_path, layout):
    options = {"num_classes": 80} | VARIANTS.get(layout, {})
    source, model = small(0, **options), small(1, **options)
    expected = weights(source)
    if layout in ("detrex", "mmdet"):  # their label embedding has no last row
        expected["denoising.label_embed.weight"][-1] = model.denoising.label_embed.weight[-1]
    if layout == "mmdet":
        expected |= {
            name: torch.zeros_like(expected[name]) for name in expected if "neck" in name and "conv.bias" in name
        }
    safetensors.torch.save_file(
        {name: tensor.clone() for name, tensor in in_layout(source, layout).items()}, tmp_path / "file.safetensors"
    )
    report = load_checkpoint(model, tmp_path / "file.safetensors")
    assert report.format == layout
    assert equal(weights(model), expected)
    assert "\n" not in str(report)
    assert ("biases of the neck" in str(report)) == (layout == "mmdet")
    assert "before use" not in str(report)


def test_a_saved_directory_loads_by_either_path(tmp_path):
    source = small(0)
    file = save_model(source, tmp_path / "best")
    for path in (tmp_path / "best", str(file)):
        model = small(1)
        load_checkpoint(model, path)
        assert equal(weights(model), weights(source))


def test_aliases_may_be_missing_as_long_as_one_is_there():
    source, model = small(0), small(1)
    given = {
        name: tensor
        for name, tensor in in_layout(source, "official").items()
        if not name.startswith(("transformer.decoder.class_embed", "transformer.decoder.bbox_embed", "bbox_embed.0"))
        and not name.startswith(("class_embed.0", "class_embed.1"))
    }
    load_checkpoint(model, given)
    assert equal(weights(model), weights(source))


@pytest.mark.parametrize("layout", ["official", "detrex", "mmdet"])
def test_heads_that_differ_between_layers_are_refused_by_name(layout):
    model = small(1, num_classes=80)
    given = in_layout(small(0, num_classes=80), layout)
    stem = "bbox_head.cls_branches" if layout == "mmdet" else "class_embed"
    odd = f"{stem}.1.bias"
    given[odd] = given[odd] + 1
    before = weights(model)
    with pytest.raises(CheckpointError, match=rf"{odd}.*differ.*shared_heads=False"):
        load_checkpoint(model, given)
    assert equal(weights(model), before)


@pytest.mark.parametrize("layout", ["detrex", "mmdet"])
def test_without_strict_the_last_layers_head_is_taken_and_reported(layout):
    model = small(1, num_classes=80)
    given = in_layout(small(0, num_classes=80), layout)
    stem = "bbox_head.cls_branches" if layout == "mmdet" else "class_embed"
    for layer in range(3):
        for prefix in ("", "transformer.decoder."):
            if f"{prefix}{stem}.{layer}.bias" in given:
                given[f"{prefix}{stem}.{layer}.bias"] = torch.full((80,), float(layer))
    report = load_checkpoint(model, given, strict=False)
    assert model.decoder.class_head.bias.tolist() == [2.0] * 80
    assert "the last of" in str(report)
    assert f"{stem}.2.bias" in str(report)


def test_all_that_is_wrong_comes_in_one_error_and_nothing_is_loaded():
    model = small(1)
    before = weights(model)
    given = in_layout(small(0), "official")
    given["transformer.decoder.nrom.weight"] = given.pop("transformer.decoder.norm.weight")
    given["transformer.tgt_embed.weight"] = torch.zeros(30, 64)
    given["transformer.level_embed"] = torch.zeros(4, 64, dtype=torch.int64)
    del given["transformer.enc_output.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, given)
    text = str(caught.value)
    for part in (
        "2 missing: query_selection.project.bias (officially transformer.enc_output.bias), decoder.norm.weight",
        "1 unexpected: transformer.decoder.nrom.weight (perhaps transformer.decoder.norm.weight)",
        "query_selection.content.weight is [20, 64] torch.float32 in the model, [30, 64] torch.float32 in the check",
        "encoder.level_embed is [4, 64] torch.float32 in the model, [4, 64] torch.int64",
        "strict=False",
    ):
        assert part in text
    assert equal(weights(model), before)


def test_an_error_about_another_architecture_stays_readable():
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(small(1), in_layout(small(0, hidden_dim=32, num_encoder_layers=6), "official"))
    assert len(str(caught.value)) < 4000
    assert "more" in str(caught.value)


def test_strict_false_says_what_it_did_with_every_tensor():
    model = small(1)
    before = weights(model)
    given = weights(small(0))
    given["decoder.extra"] = torch.zeros(1)
    given["query_selection.content.weight"] = torch.zeros(30, 64)
    del given["decoder.norm.weight"]
    report = load_checkpoint(model, given, strict=False)
    assert report.missing == ("decoder.norm.weight",)
    assert report.unexpected == ("decoder.extra",)
    assert report.reinitialised == ("query_selection.content.weight",)
    assert len(report.loaded) == len(before) - 2
    for name in ("decoder.norm.weight", "query_selection.content.weight"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert str(report) == (
        f"{len(before) - 2} tensors loaded from dino names; 1 reinitialised (query_selection.content.weight); "
        "1 missing (decoder.norm.weight); 1 unexpected (decoder.extra)"
    )


def test_counters_of_batch_norm_are_ignored():
    model = small(1)
    report = load_checkpoint(model, weights(small(0)) | {"backbone.bn1.num_batches_tracked": torch.tensor(7)})
    assert report.unexpected == ()


def test_half_precision_weights_load_into_a_full_precision_model():
    source, model = small(0), small(1)
    load_checkpoint(model, {name: tensor.half() for name, tensor in weights(source).items()})
    assert model.decoder.norm.weight.dtype == torch.float32
    assert torch.equal(model.decoder.norm.weight, source.decoder.norm.weight.half().float())


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_official_swin_and_convnext_checkpoints_load(kind):
    def build(seed):
        model = small(seed)
        if kind == "swin":
            model.backbone = Swin(8, (1, 2, 1, 1), (1, 2, 4, 8), 3, (1, 2, 3))
        else:
            model.backbone = ConvNeXt((8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 3))
        return model

    source, model = build(0), build(1)
    official = to_official(weights(source), aliases=True)
    assert ("backbone.0.norm0.weight" in official) == (kind == "convnext")
    report = load_checkpoint(model, official)
    assert equal(weights(model), weights(source))
    assert report.unexpected == ()


# Classes


@pytest.mark.parametrize("layout", ["detrex", "mmdet"])
def test_80_classes_go_to_their_category_ids_in_91(layout):
    positions = {name: value for name, value in VARIANTS[layout].items() if name != "shared_heads"}
    source, model = small(0, num_classes=80, **positions), small(1, **positions)
    embedding = model.denoising.label_embed.weight.clone()
    report = load_checkpoint(model, in_layout(source, layout))
    for part in ("decoder", "query_selection"):
        ours, theirs = (getattr(m, part).class_head for m in (model, source))
        assert torch.equal(ours.weight[COCO_IDS], theirs.weight)
        assert torch.equal(ours.bias[COCO_IDS], theirs.bias)
    used = torch.zeros(92, dtype=torch.bool)
    used[COCO_IDS] = True
    assert torch.equal(model.denoising.label_embed.weight[used], source.denoising.label_embed.weight[:-1])
    assert torch.equal(model.denoising.label_embed.weight[~used], embedding[~used])
    assert "80 classes of COCO into 91" in str(report)
    assert report.reinitialised == ()


def test_labels_without_a_category_are_never_detected():
    model = small(1)
    load_checkpoint(model, in_layout(small(0, num_classes=80), "mmdet"))
    probability = model.decoder.class_head(torch.randn(100, 64)).sigmoid()
    gaps = [label for label in range(91) if label not in COCO_IDS]
    assert probability[:, gaps].max() < 1e-4


def test_the_official_91_classes_are_gathered_into_80():
    source, model = small(0), small(1, num_classes=80)
    report = load_checkpoint(model, in_layout(source, "official"))
    assert torch.equal(model.decoder.class_head.weight, source.decoder.class_head.weight[COCO_IDS])
    assert torch.equal(model.query_selection.class_head.bias, source.query_selection.class_head.bias[COCO_IDS])
    rows = [*COCO_IDS, 91]
    assert torch.equal(model.denoising.label_embed.weight, source.denoising.label_embed.weight[rows])
    assert "91 classes of COCO into 80" in str(report)


def test_80_and_91_classes_predict_the_same():
    source, model = small(0), small(1, num_classes=80)
    with torch.no_grad():
        for part in (source.decoder, source.query_selection):
            part.class_head.bias[[i for i in range(91) if i not in COCO_IDS]] = -1e4
    load_checkpoint(model, in_layout(source, "official"))
    images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        expected, actual = source(images, mask), model(images, mask)
    torch.testing.assert_close(actual.logits, expected.logits[..., COCO_IDS])
    torch.testing.assert_close(actual.boxes_cxcywh, expected.boxes_cxcywh)


def test_other_classes_are_refused_when_strict():
    with pytest.raises(CheckpointError, match=r"decoder.class_head.weight is \[3, 64\].*\[91, 64\]"):
        load_checkpoint(small(1, num_classes=3), in_layout(small(0), "official"))


def test_fine_tuning_on_other_classes_keeps_the_heads_and_loads_the_rest():
    source, model = small(0), small(1, num_classes=3)
    before = weights(model)
    report = load_checkpoint(model, in_layout(source, "official"), strict=False)
    kept = {
        "decoder.class_head.weight", "decoder.class_head.bias", "query_selection.class_head.weight",
        "query_selection.class_head.bias", "denoising.label_embed.weight",
    }  # fmt: skip
    assert set(report.reinitialised) == kept
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, before[name] if name in kept else source.state_dict()[name])


@pytest.mark.parametrize("names", [("cat", "unicorn", "person"), ("person", "toothbrush", "stop sign", "N/A")], ids=str)
def test_fine_tuning_copies_the_rows_of_classes_with_equal_names(names):
    categories = Categories(tuple(range(len(names))), names)
    source, model = small(0), small(1, num_classes=len(names))
    before = weights(model)
    report = load_checkpoint(model, in_layout(source, "official"), strict=False, categories=categories)
    for label, name in enumerate(names):
        for key in ("decoder.class_head.weight", "query_selection.class_head.bias", "denoising.label_embed.weight"):
            row = model.state_dict()[key][label]
            if name in COCO.names and name != "N/A":
                assert torch.equal(row, source.state_dict()[key][COCO.names.index(name)])
            else:  # COCO's unused labels are no class "N/A"
                assert torch.equal(row, before[key][label])
    assert "1 new class (" in str(report) and report.reinitialised


def test_classes_of_one_name_are_paired_by_id(tmp_path):
    source = small(0, num_classes=3)
    save_model(source, tmp_path, Categories((1, 2, 3), ("car", "car", "bus")))
    bias, kept = source.decoder.class_head.bias, small(1, num_classes=3).decoder.class_head.bias
    for categories, expected in (
        (Categories((2, 1, 3), ("car", "car", "bus")), [bias[1], bias[0], bias[2]]),
        (Categories((9, 2, 1), ("bus", "car", "car")), [bias[2], bias[1], bias[0]]),
        (Categories((1, 4, 9), ("car", "car", "bus")), [bias[0], kept[1], bias[2]]),
        (Categories((1, 2, 3), ("car", "bus", "van")), [kept[0], bias[2], kept[2]]),
    ):
        model = small(1, num_classes=3)
        load_checkpoint(model, tmp_path, strict=False, categories=categories)
        assert torch.equal(model.decoder.class_head.bias, torch.stack(expected)), categories


def test_as_many_classes_of_other_names_are_not_taken_for_the_same(tmp_path):
    source, model = small(0, num_classes=2), small(1, num_classes=2)
    before = weights(model)
    save_model(source, tmp_path, Categories((1, 2), ("dog", "cat")))
    swapped = Categories((7, 9), ("cat", "dog"))
    load_checkpoint(model, tmp_path, categories=swapped)
    assert torch.equal(model.decoder.class_head.bias, source.decoder.class_head.bias.flip(0))
    with pytest.raises(CheckpointError, match="classes that the checkpoint does not have: bird"):
        load_checkpoint(model, tmp_path, categories=Categories((7, 9), ("cat", "bird")))
    load_checkpoint(model, before)
    load_checkpoint(model, tmp_path, categories=Categories((7, 9), ("cat", "bird")), strict=False)
    assert model.decoder.class_head.bias[0] == source.decoder.class_head.bias[1]
    assert model.decoder.class_head.bias[1] == before["decoder.class_head.bias"][1]


def test_categories_must_be_the_models():
    with pytest.raises(ValueError, match="categories must be the model's 91, got 1"):
        load_checkpoint(small(1), weights(small(0)), categories=Categories((1,), ("cat",)))
