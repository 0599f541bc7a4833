"""Swin and ConvNeXt against a second implementation of the official forward pass and against transformers."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dino.checkpoint.imagenet import load_backbone_weights
from dino.model.backbones import CONVNEXTS, SWINS, build_backbone, swin
from dino.model.backbones.convnext import ConvNeXt
from dino.model.backbones.resnet import ResNet
from dino.model.backbones.swin import Block, Swin, shifted_window_mask
from tests.dino.model.transformers_names import official_names

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = (1, 2, 4, 8)
SIZES = [(64, 96), (125, 157), (98, 131), (33, 250), (32, 32)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_swin(window: int = 7, levels: tuple[int, ...] = (1, 2, 3), **options) -> Swin:
    return Swin(16, (2, 2, 2, 2), HEADS, window, levels, **options)


def small_convnext(levels: tuple[int, ...] = (1, 2, 3), **options) -> ConvNeXt:
    return ConvNeXt((8, 16, 24, 32), (2, 1, 2, 1), levels, **options)


SMALL = {"swin": small_swin, "convnext": small_convnext}


def random_weights(model):
    """Every parameter random and of ordinary size, so that none of them can be ignored unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    return model.eval()


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [list(a.shape) for a in actual] == [list(e.shape) for e in expected]
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() < 1e-4 * e.abs().max()


# The official detection Swin, written from the paper and the official parameter names: windows are gathered by
# coordinates one at a time, and who may look at whom follows from where the patches were before the shift.


def official_swin(weights: dict, images: torch.Tensor, *, heads, window: int, levels) -> list[torch.Tensor]:
    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def attend(tokens, pair_bias, name, num_heads):  # tokens [B, N, C], pair_bias [heads, N, N]
        q, k, v = linear(tokens, f"{name}.qkv").chunk(3, -1)
        outputs = []
        for head, (qh, kh, vh) in enumerate(zip(*(t.chunk(num_heads, -1) for t in (q, k, v)), strict=True)):
            logits = torch.einsum("bnd,bmd->bnm", qh, kh) / qh.shape[-1] ** 0.5 + pair_bias[head]
            outputs.append(torch.softmax(logits, -1) @ vh)
        return linear(torch.cat(outputs, -1), f"{name}.proj")

    def window_attention(x, name, num_heads, shift):
        height, width = x.shape[1:3]
        rows, columns = -(-height // window) * window, -(-width // window) * window
        padded = x.new_zeros(x.shape[0], rows, columns, x.shape[3])
        padded[:, :height, :width] = x
        out = torch.zeros_like(padded)
        table = weights[f"{name}.relative_position_bias_table"]
        cells = list(itertools.product(range(window), repeat=2))
        row_step = torch.tensor([[a[0] - b[0] for b in cells] for a in cells]) + window - 1
        column_step = torch.tensor([[a[1] - b[1] for b in cells] for a in cells]) + window - 1
        bias = table[row_step * (2 * window - 1) + column_step].permute(2, 0, 1)
        for top, left in itertools.product(range(0, rows, window), range(0, columns, window)):
            i = torch.tensor([(top + r + shift) for r, _ in cells])
            j = torch.tensor([(left + c + shift) for _, c in cells])
            # Patches that wrapped around may only look at those that wrapped around the same edges.
            wrapped = (i >= rows).int() * 2 + (j >= columns).int()
            apart = (wrapped[:, None] != wrapped[None, :]) * -100.0
            i, j = i % rows, j % columns
            out[:, i, j] = attend(padded[:, i, j], bias + apart, name, num_heads)
        return out[:, :height, :width]

    height, width = images.shape[-2:]
    images = F.pad(images, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4)
    x = norm(x.permute(0, 2, 3, 1), "patch_embed.norm")
    outputs = []
    for stage in range(max(levels) + 1):
        block = 0
        while f"layers.{stage}.blocks.{block}.norm1.weight" in weights:
            name = f"layers.{stage}.blocks.{block}"
            shift = window // 2 if block % 2 == 1 else 0
            x = x + window_attention(norm(x, f"{name}.norm1"), f"{name}.attn", heads[stage], shift)
            x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
            block += 1
        if stage in levels:
            outputs.append(norm(x, f"norm{stage}").permute(0, 3, 1, 2))
        if stage < max(levels):
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = linear(norm(x, f"layers.{stage}.downsample.norm"), f"layers.{stage}.downsample.reduction")
    return outputs


def official_convnext(weights: dict, images: torch.Tensor, *, levels) -> list[torch.Tensor]:
    def conv(x, name, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(x, name):  # over channels of [B, C, H, W], spelled out
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def pointwise(x, name):
        return torch.einsum("bchw,oc->bohw", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None]

    x = images
    outputs = []
    for stage in range(max(levels) + 1):
        name = f"downsample_layers.{stage}"
        x = norm(conv(x, f"{name}.0", stride=4), f"{name}.1") if stage == 0 else conv(norm(x, f"{name}.0"), f"{name}.1", stride=2)  # fmt: skip  # noqa: E501
        block = 0
        while f"stages.{stage}.{block}.gamma" in weights:
            name = f"stages.{stage}.{block}"
            y = conv(x, f"{name}.dwconv", padding=3, groups=x.shape[1])
            y = pointwise(F.gelu(pointwise(norm(y, f"{name}.norm"), f"{name}.pwconv1")), f"{name}.pwconv2")
            x = x + weights[f"{name}.gamma"][:, None, None] * y
            block += 1
        if stage in levels:
            outputs.append(norm(x, f"norm{stage}"))
    return outputs


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("window", [3, 7, 12])
def test_swin_equals_the_official_forward_pass_at_any_size(size, window):
    # Stage 3 of 32x32 is a single patch: smaller than every window, as are most stages with window 12.
    model = random_weights(small_swin(window, (0, 1, 2, 3)))
    images = torch.randn(2, 3, *size)
    expected = official_swin(model.state_dict(), images, heads=HEADS, window=window, levels=model.levels)
    with torch.no_grad():
        assert_close(model(images), expected)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_convnext_equals_the_official_forward_pass_at_any_size(size):
    model = random_weights(small_convnext())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(model(images), official_convnext(model.state_dict(), images, levels=model.levels))


@pytest.mark.parametrize("kind", ["swin", "convnext"])
@pytest.mark.parametrize("levels", [(1, 2, 3), (0, 1, 2, 3), (0, 2), (3,), (1,)], ids=str)
def test_channels_and_strides_describe_the_maps_and_every_parameter_gets_a_gradient(kind, levels):
    model = random_weights(SMALL[kind](levels=levels))
    maps = model(torch.randn(2, 3, 64, 128))
    assert [list(x.shape) for x in maps] == [
        [2, channels, 64 // stride, 128 // stride]
        for channels, stride in zip(model.channels, model.strides, strict=True)
    ]
    torch.stack([(x * torch.randn_like(x)).sum() for x in maps]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to every key cancels in the softmax, and a window of one patch has no choice to make.
    assert [name for name in without if "relative_position_bias_table" not in name] == []
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.requires_grad] == []


@pytest.mark.parametrize("kind", ["resnet18", "swin", "convnext"])
def test_gradient_checkpointing_changes_no_number(kind):
    gradients = []
    build = SMALL.get(kind, partial(ResNet, kind, (1, 2, 3)))
    plain, recomputing = build(), build(gradient_checkpointing=True)
    recomputing.load_state_dict(random_weights(plain).state_dict())
    images = torch.randn(1, 3, 61, 70)
    for model in (plain, recomputing):
        model.train()
        torch.manual_seed(1)  # the same branches are dropped, also while recomputing
        torch.stack([x.square().sum() for x in model(images)]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    # A ResNet's stem and first stage are frozen.
    assert all(a is b or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_recomputes_blocks_in_backward(monkeypatch):

    calls = []
    forward = swin.Block.forward
    monkeypatch.setattr(swin.Block, "forward", lambda *a: calls.append(1) or forward(*a))
    for recompute, expected in ((False, 8), (True, 16)):
        calls.clear()
        small_swin(gradient_checkpointing=recompute)(torch.randn(1, 3, 32, 32))[-1].sum().backward()
        assert len(calls) == expected


def test_drop_path_keeps_the_mean_and_acts_only_in_training():
    model = random_weights(small_swin(levels=(3,), drop_path=0.5))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images)[0], model(images)[0])
        block = model.get_submodule("layers.3.blocks.1").train()
        assert isinstance(block, Block)
        assert block.drop_path == pytest.approx(0.5)
        branch = torch.ones(20_000, 1, 1, 1)
        dropped = block._drop(branch)
        block.drop_path = 1 - 1e-12
        x, mask = torch.randn(3, 4, 5, 128), shifted_window_mask(4, 5, 7, torch.device("cpu"))
        assert torch.equal(block(x, mask), x)  # both branches
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert dropped.mean() == pytest.approx(1.0, abs=0.05)


def test_swin_runs_in_bfloat16_by_autocast_and_by_conversion():
    model = random_weights(small_swin())
    images = torch.randn(1, 3, 60, 60)
    with torch.no_grad():
        expected = model(images)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            by_autocast = model(images)[-1]
        by_conversion = model.bfloat16()(images.bfloat16())[-1]
    for actual in (by_autocast, by_conversion):
        assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_a_convnext_names_the_smallest_image_it_takes():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        small_convnext()(torch.zeros(1, 3, 31, 64))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"swin_t.*convnext_xl.*got 'swin_xxl'"):
        build_backbone("swin_xxl", (1, 2, 3))


@pytest.mark.parametrize(
    ("name", "levels", "keys"),
    [
        ("swin_l", (1, 2, 3), "keys_dino_4scale_swin_l_384.json"),
        ("swin_l", (0, 1, 2, 3), "keys_dino_5scale_swin_l_384.json"),
        ("convnext_xl", (1, 2, 3), "keys_dino_4scale_convnext_xl.json"),
    ],
)
def test_parameters_have_the_official_names_and_shapes(name, levels, keys):
    official = {
        key.removeprefix("backbone.0."): shape
        for key, shape in json.loads((GOLDEN / keys).read_text())["keys"].items()
        if key.startswith("backbone.0.") and not key.startswith("backbone.0.norm0" if 0 not in levels else "-")
    }
    with torch.device("meta"):
        model = build_backbone(name, levels)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == official


@pytest.mark.parametrize("name", [*SWINS, *CONVNEXTS])
def test_every_name_builds_at_its_published_size(name):
    # Millions of parameters of the published classifiers less their heads, with three output norms in place of one.
    published = {
        "swin_t": 27.5, "swin_s": 48.8, "swin_b": 86.9, "swin_l": 195.2, "convnext_t": 27.8, "convnext_s": 49.5,
        "convnext_b": 87.6, "convnext_l": 196.2, "convnext_xl": 348.1,
    }  # fmt: skip
    with torch.device("meta"):
        model = build_backbone(name, (1, 2, 3))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(published[name], abs=0.06)


def test_random_weights_are_drawn_from_the_published_distribution():
    weights = build_backbone("swin_t", (1, 2, 3)).state_dict()
    assert weights["layers.0.blocks.0.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["layers.0.blocks.0.attn.relative_position_bias_table"].std() == pytest.approx(0.02, rel=0.1)
    assert not weights["layers.0.blocks.0.mlp.fc1.bias"].any()


# A third implementation. Small models: transformers takes any configuration.


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_transformers_backbones_give_the_same_maps_with_the_same_weights(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    stages = ["stage2", "stage3", "stage4"]
    if kind == "swin":
        model = small_swin()
        config = transformers.SwinConfig(
            embed_dim=16, depths=[2, 2, 2, 2], num_heads=list(HEADS), window_size=7, out_features=stages
        )
        theirs = transformers.SwinBackbone(config)
    else:
        model = small_convnext()
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 2, 1], out_features=stages)
        theirs = transformers.ConvNextBackbone(config)
    random_weights(theirs)
    save_file(official_names(theirs.state_dict()), tmp_path / "model.safetensors")
    load_backbone_weights(model, f"{kind}_t", tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 125, 157)
    with torch.no_grad():
        assert_close(model.eval()(images), list(theirs(images).feature_maps))
