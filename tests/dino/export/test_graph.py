"""What exported graphs compute in another way gives the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from dino.export.attention import FORMS
from dino.export.graph import least_side, level_sides, prepared
from dino.model import foreach
from dino.model.backbones.swin import Stage, Swin, window_order
from dino.model.neck import _nearest
from tests.dino.export.export_toys import small_model


@pytest.mark.parametrize("backbone", ["resnet_tiny", "convnext_t", "swin_t"])
@pytest.mark.parametrize("num_levels", [3, 4])
def test_the_least_side_is_where_the_model_has_its_levels(backbone, num_levels, monkeypatch):
    model = small_model(monkeypatch, backbone=backbone, num_levels=num_levels)
    side = least_side(model)
    maps = model.neck(model.backbone(torch.zeros(1, 3, side, side)), torch.zeros(1, side, side, dtype=torch.bool))[0]
    assert [m.shape[-2] for m in maps] == level_sides(model, side)
    assert maps[-1].shape[-1] >= 2 and sum(m[0, 0].numel() for m in maps) >= 20


def test_the_mask_is_resized_to_the_same_pixels():
    for length in range(2, 300):
        line = torch.arange(length, dtype=torch.float32).view(1, 1, 1, length)
        for count in {-(-length // stride) for stride in (4, 8, 16, 32, 64)}:
            expected = F.interpolate(line, (1, count)).flatten().long()
            assert torch.equal(_nearest(torch.zeros(1, 1, length), 2, count), expected)


def test_lists_are_computed_one_by_one_in_exported_programs(monkeypatch):
    first, second = (list(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(k)).abs()) for k in (0, 1))
    calls = [(foreach.foreach_add, first, 1e-6), (foreach.foreach_div, first, [2.0, 3.0, 4.0])]
    calls += [
        (foreach.foreach_sub, first, second),
        (foreach.foreach_mul, first, second),
        (foreach.foreach_rsqrt, first),
    ]
    expected = [function(*arguments) for function, *arguments in calls]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for (function, *arguments), results in zip(calls, expected, strict=True):
        assert all(map(torch.equal, function(*arguments), results))


def test_the_prepared_model_has_the_same_bits():
    model = small_model(backbone="resnet18")
    for module in model.backbone.modules():
        for name, buffer in module.named_buffers(recurse=False):
            buffer.uniform_(0.5, 1.5) if name.startswith("running") else None
    images, mask = torch.randn(2, 3, 72, 104), torch.zeros(2, 72, 104, dtype=torch.bool)
    mask[1, 60:] = True
    with torch.no_grad():
        expected = model(images, mask)
        found = prepared(model, FORMS["op"], half=False)(images, mask)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes_cxcywh, expected.boxes_cxcywh)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("size", [(3, 2), (8, 8), (5, 9), (13, 7)])
def test_swins_windows_are_gathered_in_exported_programs(size, monkeypatch):
    torch.manual_seed(0)
    stage = Stage(8, 2, 4, [0.0, 0.0, 0.0], merge=False, gradient_checkpointing=False).eval()
    x = torch.randn(2, *size, 8)
    with torch.no_grad():
        expected = stage(x)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        assert torch.equal(stage(x), expected)
    patches, places = window_order(size[0], size[1], 4, 2, x.device)
    assert torch.equal(patches[places], torch.arange(size[0] * size[1]))


@pytest.mark.compiler
def test_swin_is_exported_at_any_size_with_short_expressions():
    torch.manual_seed(0)
    model = Swin(8, (2, 1, 1, 1), (1, 2, 2, 2), 4, (1,)).eval()
    free = {0: Dim("batch", min=1), 2: Dim("height", min=9), 3: Dim("width", min=9)}
    with torch.no_grad():
        program = torch.export.export(model, (torch.zeros(2, 3, 56, 88),), dynamic_shapes=(free,), strict=False)
        # Of longer ones, or with padded maps cut to size, the exporter takes minutes per stage.
        shapes = [node.meta["val"].shape for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")]
        assert max(len(str(side)) for shape in shapes for side in shape) < 150
        module = program.module()
        for shape in ((1, 3, 16, 10), (3, 3, 61, 90)):  # one window; some are padded
            images = torch.randn(shape)
            assert torch.equal(module(images)[0], model(images)[0])
