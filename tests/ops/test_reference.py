"""The reference, which every kernel is measured against, equals the equation written as loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_kernels import fused_ms_deform_attn, ms_deform_attn
from dino_kernels.testing import Case, sample_inputs

TINY = [
    Case("levels", 2, 3, 2, 3, ((4, 5), (2, 3), (1, 1)), (2, 2, 2)),
    Case("boxes", 1, 4, 2, 2, ((4, 5), (3, 1)), (2, 3), reference_coordinates=4),
    Case("mask", 2, 3, 1, 2, ((4, 4), (2, 2)), (2, 2), mask=True),
    Case("hostile", 2, 6, 2, 2, ((4, 8), (2, 2)), (3, 1), layout="hostile"),
    Case("hostile_boxes", 2, 6, 2, 2, ((4, 8), (2, 2)), (3, 1), reference_coordinates=4, layout="hostile"),
]


def bilinear_by_hand(level: Tensor, x: float, y: float) -> Tensor:
    """`level` [H, W, D] at pixel (x, y); pixels outside are zero, and so is what is not a place."""
    height, width, channels = level.shape
    total = torch.zeros(channels, dtype=level.dtype)
    if not (math.isfinite(x) and math.isfinite(y)):
        return total
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * level[row, column]
    return total


def classic_by_hand(inputs: dict[str, Any], case: Case) -> Tensor:
    locations = inputs["sampling_locations"].detach().reshape(case.batch, case.queries, case.heads, case.K, 2)
    weights = inputs["attention_weights"].detach().reshape(case.batch, case.queries, case.heads, case.K)
    value = inputs["value"].detach()
    output = torch.zeros(case.batch, case.queries, case.heads, case.channels, dtype=value.dtype)
    levels = [level for level, points in enumerate(case.points) for _ in range(points)]
    starts = [sum(h * w for h, w in case.shapes[:level]) for level in range(case.L)]
    for b in range(case.batch):
        for q in range(case.queries):
            for m in range(case.heads):
                for k, level in enumerate(levels):
                    height, width = case.shapes[level]
                    rows = value[b, starts[level] : starts[level] + height * width, m].view(height, width, -1)
                    x, y = locations[b, q, m, k].tolist()
                    sampled = bilinear_by_hand(rows, x * width - 0.5, y * height - 0.5)
                    output[b, q, m] += weights[b, q, m, k] * sampled
    return output.flatten(2)


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)
def test_reference_equals_the_equation_written_as_loops(case):
    inputs = sample_inputs("ms_deform_attn", case, torch.float64)
    torch.testing.assert_close(ms_deform_attn(**inputs, backend="reference"), classic_by_hand(inputs, case))


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)
def test_fused_reference_equals_the_loops_on_locations_by_hand(case):
    """`sample_inputs` derives the classic op's locations from the same draws, by formulas of its own."""
    classic = sample_inputs("ms_deform_attn", case, torch.float64)
    fused = sample_inputs("fused_ms_deform_attn", case, torch.float64)
    expected = classic_by_hand(classic, case)
    torch.testing.assert_close(fused_ms_deform_attn(**fused, backend="reference"), expected, rtol=1e-7, atol=1e-7)


def core_of_deformable_detr(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn_core_pytorch` as the original repository defines it, in our letters."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    maps = value.split([height * width for height, width in shapes.tolist()], dim=1)
    grids = 2 * locations - 1
    sampled = []
    for level, (height, width) in enumerate(shapes.tolist()):
        image = maps[level].flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1).view(batch, heads * channels, queries)
    return output.transpose(1, 2).contiguous()


def test_reference_equals_the_original_pytorch_core():
    case = Case("core", 2, 17, 8, 8, ((9, 11), (5, 6), (3, 3)), (4, 4, 4), layout="local")
    inputs = sample_inputs("ms_deform_attn", case, torch.float32)
    arguments = [inputs[name] for name in ("value", "spatial_shapes", "sampling_locations", "attention_weights")]
    differentiated = [arguments[0], *arguments[2:]]
    original, ours = core_of_deformable_detr(*arguments), ms_deform_attn(**inputs, backend="reference")
    torch.testing.assert_close(ours, original)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(ours.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(ours, differentiated, grad),
        torch.autograd.grad(original, differentiated, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_reference_computes_16_bit_values_in_float32():
    case = Case("half", 2, 17, 4, 8, ((9, 11), (5, 6)), (4, 4))
    for dtype in (torch.bfloat16, torch.float16):
        inputs = sample_inputs("ms_deform_attn", case, dtype, requires_grad=False)
        wide = {**inputs, "value": inputs["value"].float(), "attention_weights": inputs["attention_weights"].float()}
        expected = ms_deform_attn(**wide, backend="reference").to(dtype)
        assert torch.equal(ms_deform_attn(**inputs, backend="reference"), expected)
