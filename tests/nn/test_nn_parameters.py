"""The parameters of `MSDeformAttn` have the original's names, shapes and initial values."""

from __future__ import annotations

import math
import re

import pytest
import torch

from dino_kernels.nn import MSDeformAttn


def test_the_constructor_takes_the_original_arguments():
    module = MSDeformAttn()
    assert (module.d_model, module.n_levels, module.n_heads, module.n_points) == (256, 4, 8, 4)
    assert MSDeformAttn(64, 2, 4, 3).n_points == 3
    assert module.im2col_step == 64
    module.im2col_step = 128  # accepted and ignored


def test_state_dict_has_the_original_names_and_shapes():
    shapes = {name: tuple(tensor.shape) for name, tensor in MSDeformAttn().state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }
    assert [name for name, _ in MSDeformAttn().named_parameters()] == list(shapes)
    assert not list(MSDeformAttn().buffers())


@pytest.mark.parametrize(("heads", "levels", "points"), [(8, 4, 4), (4, 3, 2), (6, 1, 5), (1, 2, 3)])
def test_offset_biases_start_on_rays(heads, levels, points):
    """Samples of head m lie at angle 2 pi m / M; point p is p + 1 steps of max-norm 1 out."""
    module = MSDeformAttn(heads * 8, levels, heads, points)
    bias = module.sampling_offsets.bias.view(heads, levels, points, 2)
    for head in range(heads):
        x, y = math.cos(2 * math.pi * head / heads), math.sin(2 * math.pi * head / heads)
        norm = max(abs(x), abs(y))
        for level in range(levels):
            for point in range(points):
                expected = torch.tensor([x / norm * (point + 1), y / norm * (point + 1)])
                torch.testing.assert_close(bias[head, level, point].detach(), expected, rtol=1e-5, atol=1e-5)


def test_other_parameters_start_as_in_the_original():
    torch.manual_seed(0)
    module = MSDeformAttn()
    for name in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias"):
        assert (module.get_parameter(name) == 0).all(), name
    for name in ("value_proj", "output_proj"):
        weight = module.get_parameter(f"{name}.weight")
        bound = math.sqrt(6 / (256 + 256))  # xavier uniform
        assert 0.99 * bound < weight.abs().max() <= bound and abs(weight.mean()) < 0.01 * bound
        torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.02, atol=0)
        assert (module.get_parameter(f"{name}.bias") == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30}, "MSDeformAttn: d_model must be a multiple of n_heads, got 30 and 8"),
        ({"n_points": [4, 4]}, "MSDeformAttn: n_points must be an int or 4 counts, got [4, 4]"),
    ],
)
def test_impossible_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MSDeformAttn(**options)
