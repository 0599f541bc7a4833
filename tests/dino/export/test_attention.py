"""Each form of attention computes the op, at any number of coordinates, and for locations that are no numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dino.export.attention import FORMS, form_of
from dino.export.attention.plugin import _plugin
from dino_kernels import fused_ms_deform_attn

SHAPES = [(9, 11), (5, 6), (1, 1)]


def arguments(coordinates: int, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(coordinates)
    rows = sum(height * width for height, width in SHAPES)
    offsets = 3 * torch.randn(2, 13, 4, 9, 2, generator=generator)
    offsets[0, 0, 0, 0] = torch.nan
    offsets[1, 1, 0, 0, 0] = torch.inf
    offsets[1, 1, 0, 1, 1] = -torch.inf
    return (
        torch.randn(2, rows, 4, 8, generator=generator).to(dtype),
        SHAPES,
        None,
        torch.rand(2, 13, 3, coordinates, generator=generator),
        offsets.to(dtype),
        torch.randn(2, 13, 4, 9, generator=generator).to(dtype),
        torch.rand(2, rows, generator=generator) < 0.2,
    )


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_computes_the_op(form, coordinates):
    given = arguments(coordinates)
    expected = fused_ms_deform_attn(*given, num_points=[3, 3, 3])
    found = FORMS[form].attend(*given, num_points=[3, 3, 3])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    # Padding counts: without it the result is another.
    assert (fused_ms_deform_attn(*given[:-1], num_points=[3, 3, 3]) - expected).abs().max() > 0.1


@pytest.mark.parametrize("form", ["gather", "grid", "plugin"])
def test_sixteen_bits_are_summed_in_float32(form):
    given = arguments(2, torch.float16)
    given[4][~given[4].isfinite()] = 100.0
    expected = fused_ms_deform_attn(
        *(x.float() if i in (0, 4, 5) else x for i, x in enumerate(given)), num_points=[3] * 3
    )
    found = FORMS[form].attend(*given, num_points=[3, 3, 3])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_the_plugin_has_a_fake_of_its_shape():
    shapes = torch.tensor(SHAPES, dtype=torch.int32)
    starts = torch.tensor([0, 99, 129], dtype=torch.int32)
    inputs = torch.randn(2, 130, 4, 8), shapes, starts, torch.rand(2, 5, 4, 3, 2, 2), torch.rand(2, 5, 4, 3, 2)
    torch.library.opcheck(_plugin, inputs, test_utils=("test_schema", "test_faketensor"))


def test_forms_belong_to_formats():
    assert form_of(None, "onnx")[0] == "gather" and form_of(None, "torch")[0] == "op"
    with pytest.raises(ValueError, match=r"attention must be one of .*, got 'grids'\. Perhaps you meant 'grid'"):
        form_of("grids", "onnx")
    with pytest.raises(ValueError, match=r"'plugin' cannot be part of a file of format torch. Use gather, grid, op\."):
        form_of("plugin", "torch")
