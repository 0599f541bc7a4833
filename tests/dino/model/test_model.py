"""The model beyond the stored outputs: variants, sharing, independence, sizes, precision."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import dino
from benchmarks.measure.launches import Launches
from dino.model.boxes import cxcywh_to_xyxy
from dino.model.criterion import NUM_TRAINED
from dino.model.denoising import Noise
from dino.model.encoder import Memory
from dino.model.query_selection import token_proposals
from dino_kernels import PackedTargets
from dino_kernels.nn import MSDeformAttn
from tests.dino.model import parity
from tests.dino.model.criterion_toys import targets_of as targets

TINY: dict[str, Any] = {
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_queries": 12,
    "ffn_dim": 32,
    "num_classes": 5,
}


def tiny(**overrides: Any) -> dino.DINO:
    torch.manual_seed(0)
    return dino.build_model("dino_tiny", **TINY | overrides)


def grown(**overrides: Any) -> dino.DINO:
    """Build a tiny model past its first steps: at the start many weights are zero, and stop gradients."""
    model = tiny(**overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def batch(sizes: tuple[tuple[int, int], ...] = ((64, 80), (50, 61))) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images, mask = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = False
    return images, mask


def memory_of(model: dino.DINO, images: Tensor, mask: Tensor) -> Memory:
    return model.encoder(*model.neck(model.backbone(images), mask))


def training_loss(model: dino.DINO, truth: list[dict[str, Tensor]], indices: Tensor | None = None) -> Tensor:
    torch.manual_seed(3)
    criterion = dino.build_criterion(model.config)
    return criterion.weighted_total(criterion(model(*batch(), truth, query_indices=indices), truth))


VARIANTS = [
    {"query_selection": selection, "look_forward": look, "denoising": denoising}
    for selection, look, denoising in itertools.product(
        ("mixed", "pure", "static"), ("twice", "once"), ("contrastive", "plain", "off")
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["-".join(variant.values()) for variant in VARIANTS])
@pytest.mark.parametrize("counts", [(2, 3), (0, 1), (0, 0)], ids=["boxes", "one_empty", "none"])
def test_every_trained_parameter_gets_a_gradient_in_every_variant(variant: dict, counts: tuple[int, int]) -> None:
    model = tiny(**variant).train()
    loss = training_loss(model, targets(*counts))
    loss.backward()
    assert loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("preset", "total", "trained"),
    [
        ("dino_4scale_r50", 46_893_182, 46_670_782),
        ("dino_5scale_r50", 47_255_806, 47_033_406),
    ],
)
def test_parameter_counts_are_the_papers(preset: str, total: int, trained: int) -> None:
    with torch.device("meta"):
        model = dino.DINO(dino.model_config(preset, pretrained_backbone=False))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_initial_weights_are_distributed_as_the_official_ones() -> None:
    model = dino.build_model("dino_4scale_r50", pretrained_backbone=False)
    weights = dino.checkpoint.to_official(model.state_dict())
    checked = 0
    for name, wanted in parity.load_json("init_stats_dino_4scale_r50").items():
        name = name if name in weights else f"transformer.decoder.{name}"
        if name not in weights or name.startswith("backbone"):
            continue
        value = weights[name].double()
        assert list(value.shape) == wanted["shape"], name
        count = value.numel()
        spread = wanted["std"]
        assert value.mean().item() == pytest.approx(wanted["mean"], abs=6 * spread * (2 / count) ** 0.5 + 1e-6), name
        if count > 1:
            found = value.std(unbiased=False).item()
            assert found == pytest.approx(spread, rel=6 / count**0.5, abs=1e-6), name
        checked += 1
    assert checked > 200


def test_encoder_heads_start_as_copies_of_the_decoders() -> None:
    model = tiny()
    for head in ("class_head", "box_head"):
        ours, decoder = getattr(model.query_selection, head), getattr(model.decoder, head)
        for a, b in zip(ours.parameters(), decoder.parameters(), strict=True):
            assert torch.equal(a, b) and a is not b


def test_all_decoder_layers_share_one_head() -> None:
    names = [name for name, _ in tiny(num_decoder_layers=4).named_parameters() if "head" in name and "decoder" in name]
    assert len(names) == 2 + 6 and not any("layers.1." in name for name in names if "class" in name)


# Both branches ------------------------------------------------------------------------------------------------


def test_denoising_adds_two_queries_per_slot_and_group() -> None:
    model = tiny(num_denoising=50).train()
    for counts in ((2, 3), (1, 7), (60, 1)):
        outputs = model(*batch(), targets(*counts))
        most = max(counts)
        groups = max(1, 100 // (2 * most))
        assert outputs.denoising is not None
        assert outputs.denoising.logits.shape[2] == 2 * most * groups
        assert outputs.logits.shape[2] == 12
        assert outputs.as_dict()["dn"]["num_groups"] == groups


def test_hooks_see_query_selection_and_denoising() -> None:
    model, seen = tiny().train(), {}
    for name in ("query_selection", "denoising"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
    outputs = model(*batch(), targets(2, 3))
    assert seen["query_selection"].indices is outputs.selected_indices
    assert outputs.denoising is not None and seen["denoising"].layout == outputs.denoising.layout


def test_plain_denoising_has_positives_only() -> None:
    model = tiny(denoising="plain").train()
    outputs = model(*batch(), targets(2, 4))
    assert outputs.denoising is not None and outputs.denoising.logits.shape[2] == 4 * (100 // 8)


def test_both_branches_share_every_weight() -> None:
    """The losses of either branch alone reach exactly the same decoder, encoder, neck and backbone parameters."""
    model = grown().train()
    truth = targets(2, 3)
    reached: dict[str, set[str]] = {}
    for branch in ("matching", "denoising"):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        losses = dino.build_criterion(model.config)(model(*batch(), truth), truth)
        sets = {"matching": slice(losses.num_layers), "denoising": slice(losses.first_denoising, None)}[branch]
        losses.table[:NUM_TRAINED, sets].sum().backward()
        reached[branch] = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    shared = {n for n, _ in model.named_parameters() if n.startswith(("decoder.", "encoder.", "neck.", "backbone."))}
    assert shared - reached["matching"] == set()
    assert shared - reached["denoising"] == set()
    # Beside them: denoising queries attend to matching queries, never the other way round.
    assert reached["denoising"] - shared == {"denoising.label_embed.weight", "query_selection.content.weight"}
    assert reached["matching"] - shared == {"query_selection.content.weight"}


def test_equal_queries_get_equal_predictions_in_either_branch() -> None:
    model = tiny().eval()
    memory = memory_of(model, *batch())
    content, anchors = torch.randn(2, 6, 32), torch.randn(2, 6, 4)
    blocked = torch.eye(2, dtype=torch.bool).logical_not().repeat_interleave(6, 0).repeat_interleave(6, 1)
    states, references = model.decoder(content.repeat(1, 2, 1), anchors.repeat(1, 2, 1), memory, blocked)
    torch.testing.assert_close(states[:, :, :6], states[:, :, 6:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(references[:, :, :6], references[:, :, 6:], rtol=1e-5, atol=1e-6)


def test_matching_queries_never_see_ground_truth() -> None:
    model = tiny().train()
    images, mask = batch()
    plain = model(images, mask)
    for counts in ((2, 3), (5, 0)):
        beside = model(images, mask, targets(*counts))
        torch.testing.assert_close(beside.logits, plain.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(beside.boxes_cxcywh, plain.boxes_cxcywh, rtol=1e-5, atol=1e-6)


def test_groups_do_not_see_each_other() -> None:
    model = tiny(num_denoising=50).train()
    truth = targets(2, 3)
    layout = model.denoising.layout(PackedTargets.pack(truth))  # type: ignore[union-attr]
    torch.manual_seed(5)
    noise = Noise.draw(2, layout.num_queries, 5, torch.device("cpu"))
    changed = dataclasses.replace(noise, part=noise.part.clone())
    changed.part[:, 6 * 4 : 6 * 5] = 0.5  # of group 4
    first, second = (model(*batch(), truth, denoising_noise=n).denoising for n in (noise, changed))
    assert first is not None and second is not None
    difference = (first.logits - second.logits).abs().amax((0, 1, 3)).unflatten(0, (-1, 6)).amax(1)
    assert difference[4] > 1e-4
    assert torch.cat([difference[:4], difference[5:]]).max() < 1e-5


def test_noise_has_the_papers_range() -> None:
    """Positives move by up to half a box, negatives by half to a whole; a quarter of the labels is redrawn."""
    model = tiny(num_denoising=2000)
    truth = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "labels": torch.tensor([3])}]
    made = model.denoising(PackedTargets.pack(truth))  # type: ignore[misc]
    corners = cxcywh_to_xyxy(made.anchors.sigmoid()[0])
    moved = ((corners - cxcywh_to_xyxy(truth[0]["boxes"])).abs() / 0.1).unflatten(0, (-1, 2))
    assert moved[:, 0].max() <= 1.001 and moved[:, 0].max() > 0.99
    center_kept = made.anchors[0].unflatten(0, (-1, 2))[:, 1, 2:].min(-1).values > -6.9  # not turned inside out
    assert moved[center_kept, 1].min() >= 0.99 and moved[center_kept, 1].max() <= 2.01
    weight = model.denoising.label_embed.weight  # type: ignore[union-attr]
    kept = (made.content[0] == weight[3]).all(-1).float().mean().item()
    assert kept == pytest.approx(0.75 + 0.25 / 5, abs=0.03)


def test_look_forward_once_stops_the_gradient_at_the_layer_before() -> None:
    gradients = {}
    for look_forward in ("twice", "once"):
        model = grown(look_forward=look_forward, denoising="off").train()
        outputs = model(*batch())
        last = outputs.boxes_cxcywh[-1].sum()
        last.backward()
        gradients[look_forward] = model.decoder.box_head.get_parameter("layers.0.weight").grad
        assert outputs.boxes_cxcywh.isfinite().all()
    assert not torch.allclose(gradients["twice"], gradients["once"])


# Sizes and inputs ----------------------------------------------------------------------------------------------


def test_fewer_tokens_than_queries_give_fewer_predictions() -> None:
    model = tiny(num_queries=500).eval()
    outputs = model(*batch(((32, 32), (17, 30))))
    tokens = sum(h * h for h in (4, 2, 1))
    assert outputs.logits.shape[2] == tokens
    assert len(dino.postprocess(outputs, torch.tensor([[32, 32], [17, 30]]), 300)[0]["scores"]) == min(300, tokens * 5)


def test_padding_changes_nothing_for_an_image() -> None:
    """An image whose size the strides divide is the same alone and beside a larger one: padding is masked."""
    model = tiny(num_queries=4).eval()
    images, mask = batch(((64, 64),))
    alone = model(images, mask)
    wide = torch.zeros(2, 3, 64, 128)
    wide[0, :, :, :64], wide[1] = images[0], torch.randn(3, 64, 128)
    wide_mask = torch.zeros(2, 64, 128, dtype=torch.bool)
    wide_mask[0, :, 64:] = True
    assert memory_of(model, wide, wide_mask).levels.valid_ratios[0].tolist() == [[0.5, 1.0]] * 3
    assert alone.logits.shape == model(wide, wide_mask).logits[:, :1].shape


def test_selected_padding_has_the_box_of_the_whole_image_and_finite_gradients() -> None:
    model = grown().train()
    _, unusable = token_proposals(memory_of(model, *batch()).levels)
    unusable = unusable.int().topk(12).indices  # of the smaller image, padding
    outputs = model(*batch(), targets(2, 3), query_indices=unusable)
    assert outputs.encoder_boxes_cxcywh is not None
    assert (outputs.encoder_boxes_cxcywh[1] == 1).all()
    criterion = dino.build_criterion(model.config)
    criterion.weighted_total(criterion(outputs, targets(2, 3))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_step_of_the_papers_model_starts_at_most_1500_operations() -> None:
    """The official code starts 6,241: 1,741 in the forward pass, 1,965 in the losses, 2,535 in the backward pass."""
    model = dino.build_model("dino_4scale_r50", pretrained_backbone=False).train()
    criterion = dino.build_criterion(model.config)
    images, mask = batch(((64, 64), (64, 60)))
    packed = PackedTargets.pack(targets(8, 8))
    with Launches() as forward:
        outputs = model(images, mask, packed)
    with Launches() as losses:
        loss = criterion.weighted_total(criterion(outputs, packed))
    with Launches() as backward:
        loss.backward()
    counts = forward.count, losses.count, backward.count
    assert sum(counts) <= 1500, counts


@pytest.mark.parametrize("name", ["dino_4scale_r18", "dino_5scale_r50", "dino_4scale_r101"])
def test_presets_run(name: str) -> None:
    small = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_queries": 10, "pretrained_backbone": False}
    model = dino.build_model(name, **small, hidden_dim=64, ffn_dim=64).eval()
    with torch.no_grad():
        outputs = model(*batch())
    assert outputs.logits.shape == (1, 2, 10, 91)
    assert len(model.neck.projections) == model.config.num_levels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)), r"images must be \[B, 3, H, W\]"),
        ((torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64)), "mask must be bool .* got torch.float32"),
        ((torch.zeros(2, 3, 64, 64), torch.zeros(2, 32, 64, dtype=torch.bool)), "mask must be bool"),
        ((*batch(), targets(1)), "one entry per image, got 1 for 2"),
        ((batch()[0], targets(1, 2)), r"mask must be a tensor, got list. Call model\(images, mask, targets\)"),
        (([torch.zeros(3, 64, 64)], batch()[1]), "images must be a tensor, got list"),
    ],
)
def test_bad_inputs_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tiny().train()(*arguments)


def test_recorded_noise_of_another_size_is_named() -> None:
    noise = Noise.draw(2, 7, 5, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"denoising_noise must have .* \[2, 100\], got \[2, 7\]"):
        tiny().train()(*batch(), targets(1, 2), denoising_noise=noise)


# Precision -----------------------------------------------------------------------------------------------------


def test_bf16_autocast_keeps_boxes_in_float32_and_close() -> None:
    model = tiny().eval()
    images, mask = batch()
    exact = model(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, mask, query_indices=exact.selected_indices)
    assert outputs.boxes_cxcywh.dtype == torch.float32
    assert (outputs.boxes_cxcywh - exact.boxes_cxcywh).abs().max() < 0.02
    assert (outputs.logits - exact.logits).abs().max() < 0.1


def test_training_under_bf16_autocast_gives_finite_gradients_close_to_float32() -> None:
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = grown().train()
        indices = torch.arange(12).expand(2, -1)  # 16 bits may choose others
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = training_loss(model, targets(2, 3), indices)
        loss.backward()
        gradients[dtype] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert gradients[torch.bfloat16].isfinite().all()
    similarity = torch.cosine_similarity(*gradients.values(), dim=0)
    assert similarity > 0.97


def test_float64_runs_and_agrees() -> None:
    model = tiny().eval()
    images, mask = batch()
    single = model(images, mask)
    double = model.double()(images.double(), mask, query_indices=single.selected_indices)
    assert double.logits.dtype == torch.float64
    assert (double.logits - single.logits).abs().max() < 1e-4
    assert (double.boxes_cxcywh - single.boxes_cxcywh).abs().max() < 1e-5


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(gradient_checkpointing=checkpointing).train()
        training_loss(model, targets(2, 3)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_model_uses_the_backend_that_its_modules_name() -> None:
    model = tiny().eval()
    exact = model(*batch())
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = "reference"
    reference = model(*batch())
    torch.testing.assert_close(reference.logits, exact.logits, rtol=1e-4, atol=1e-5)


def test_every_public_name_exists() -> None:
    for name in dino.__all__:
        assert getattr(dino, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'build_modell'"):
        dino.build_modell  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
