"""The lines of "Coming from X?" in the README: each runs, on the package itself or on a transcription of its signature.

Code of checkouts is in test_original.py, mmcv's in test_mmcv.py, transformers' in test_transformers_modules.py.
"""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dino_kernels
from dino_kernels.integrations import original
from dino_kernels.integrations import transformers as fast
from dino_kernels.nn import MSDeformAttn

ROOT = Path(__file__).parents[2]
SHAPES = torch.tensor([[6, 8], [3, 4]])
STARTS = torch.tensor([0, 48])
S = 60


def core(value, shapes, locations, weights):
    """The definition, of value [B, S, M, D], in PyTorch's operators."""
    total, start = torch.zeros(()), 0
    for level, (height, width) in enumerate(shapes.tolist()):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).unflatten(-1, (height, width))
        start += height * width
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2)
        samples = nn.functional.grid_sample(image.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
        total = total + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.unflatten(0, (len(value), -1)).flatten(1, 2).transpose(1, 2)


class Layers(nn.Module):
    """The four projections that both packages' modules have, and their computation."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        samples = heads * levels * points
        self.grid = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, 2 * samples)
        self.attention_weights = nn.Linear(channels, samples)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def attend(self, query, references, features, shapes, padding):
        heads, levels, points = self.grid
        value = self.value_proj(features)
        value = value if padding is None else value.masked_fill(padding[..., None], 0)
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, -1)).softmax(-1).unflatten(-1, (levels, points))
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            locations = centres + offsets / shapes.flip(-1)[:, None]
        else:
            locations = centres + offsets / points * references[:, :, None, :, None, 2:] * 0.5
        return self.output_proj(core(value.unflatten(-1, (heads, -1)), shapes, locations, weights))


class RfDetr(Layers):
    def __init__(self, d_model=256, n_levels=4, n_heads=8, n_points=4):
        super().__init__(d_model, n_heads, n_levels, n_points)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points

    def forward(self, query, reference_points, input_flatten, input_spatial_shapes,
                input_level_start_index, input_padding_mask=None):  # fmt: skip
        return self.attend(query, reference_points, input_flatten, input_spatial_shapes, input_padding_mask)


class Detrex(Layers):
    def __init__(self, embed_dim=256, num_heads=8, num_levels=4, num_points=4, batch_first=False):
        super().__init__(embed_dim, num_heads, num_levels, num_points)
        self.num_heads, self.num_points, self.batch_first = num_heads, num_points, batch_first
        self.dropout = nn.Dropout(0.1)

    def forward(self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
                reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs):  # fmt: skip
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output = self.attend(query, reference_points, value, spatial_shapes, key_padding_mask)
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity


for transcription, name, module in (
    (RfDetr, "MSDeformAttn", "rfdetr.models.ops.modules.ms_deform_attn"),
    (Detrex, "MultiScaleDeformableAttention", "detrex.layers.multi_scale_deform_attn"),
):
    transcription.__name__ = transcription.__qualname__ = name
    transcription.__module__ = module


def check_replaced(module: nn.Module, **inputs: torch.Tensor) -> None:
    """Compare outputs and gradients of a module before and after `replace`."""
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    tensors = [tensor.requires_grad_() for tensor in inputs.values() if tensor.is_floating_point()]
    tensors += list(module.parameters())
    results = []
    for _ in range(2):
        output = module(**inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
        fast.replace(module)
    assert type(module).__name__.startswith("Fused")
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    fast.restore(copy.deepcopy(module))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_replace_works_on_rf_detrs_module(coordinates, padded):
    torch.manual_seed(0)
    mask = {"input_padding_mask": torch.rand(2, S) < 0.2} if padded else {}
    check_replaced(
        RfDetr(32, 2, 4, 3),
        query=torch.randn(2, 7, 32).double(),
        reference_points=torch.rand(2, 7, 2, coordinates).double(),
        input_flatten=torch.randn(2, S, 32).double(),
        input_spatial_shapes=SHAPES,
        input_level_start_index=STARTS,
        **mask,
    )


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_replace_works_on_detrex_module(coordinates, batch_first):
    torch.manual_seed(0)
    order = (lambda x: x) if batch_first else (lambda x: x.transpose(0, 1).contiguous())
    check_replaced(
        Detrex(32, 4, 2, 3, batch_first),
        query=order(torch.randn(2, 7, 32).double()),
        value=order(torch.randn(2, S, 32).double()),
        query_pos=order(torch.randn(2, 7, 32).double()),
        key_padding_mask=torch.rand(2, S) < 0.2,
        reference_points=torch.rand(2, 7, 2, coordinates).double(),
        spatial_shapes=SHAPES,
        level_start_index=STARTS,
    )


def test_classes_of_these_names_elsewhere_are_left_alone():
    with pytest.raises(ValueError, match="no deformable attention to replace"):
        fast.replace(nn.Sequential(MSDeformAttn(32, 2, 4, 3)))


def test_the_drop_in_module_takes_rf_detrs_place():
    def parameters(cls):
        return list(inspect.signature(cls).parameters)

    assert parameters(MSDeformAttn)[:4] == parameters(RfDetr)
    forward = list(inspect.signature(RfDetr.forward).parameters)
    assert list(inspect.signature(MSDeformAttn.forward).parameters)[: len(forward)] == forward
    theirs, ours = RfDetr(32, 2, 4, 3), MSDeformAttn(32, 2, 4, 3)
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(2, 7, 32), torch.rand(2, 7, 2, 4), torch.randn(2, S, 32), SHAPES, STARTS
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-4, atol=1e-5)


def test_scipys_line():
    optimize = pytest.importorskip("scipy.optimize")
    cost = np.random.default_rng(0).normal(size=(20, 7))
    rows, columns = dino_kernels.linear_sum_assignment(cost)
    expected = optimize.linear_sum_assignment(cost)
    assert np.array_equal(rows, expected[0]) and np.array_equal(columns, expected[1])


def test_torch_linear_assignments_line():
    cost = torch.rand(3, 20, 7)
    found = dino_kernels.linear_sum_assignment(cost)
    package = pytest.importorskip("torch_linear_assignment")
    # Both return the target of each row, or -1.
    assert torch.equal(found, package.batch_linear_assignment(cost))


def test_lapxs_line():
    lap = pytest.importorskip("lap")
    cost = np.random.default_rng(1).random((12, 5))
    rows, columns = dino_kernels.linear_sum_assignment(cost)
    total, x, _ = lap.lapjv(cost, extend_cost=True)
    assert np.isclose(cost[rows, columns].sum(), total)
    assert [(i, int(j)) for i, j in enumerate(x) if j >= 0] == list(zip(rows.tolist(), columns.tolist(), strict=True))


def test_deformops_arguments_are_taken_by_position():
    """`deformops.deform2d_multiscale(values, shapes, start_index, locs, attn, im2col_step=128)`."""
    value, weights = torch.randn(2, S, 4, 8), torch.rand(2, 7, 4, 2, 3)
    locations = torch.rand(2, 7, 4, 2, 3, 2)
    found = dino_kernels.ms_deform_attn(value, SHAPES, STARTS, locations, weights)
    torch.testing.assert_close(found, core(value, SHAPES, locations, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", ["README.md", "README.zh-CN.md"])
def test_every_name_in_the_table_exists(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    section = re.search(r"\n### (?:Coming from|从)[^\n]*\n(.*?)\n## ", text, re.S)
    assert section is not None
    table = [line for line in section[1].splitlines() if line.startswith("| ")][1:]
    everyone = "Deformable-DETR DINO Mask2Former GroundingDINO RT-DETR RT-DETRv2 D-FINE mmcv transformers detrex "
    everyone += "deformops RF-DETR SciPy torch-linear-assignment lapx"
    firsts = " ".join(line.split("|")[1] for line in table)
    assert [name for name in everyone.split() if name not in firsts] == []
    for path, names in re.findall(r"`from (dino_kernels[\w.]*) import (\w+)", section[1]):
        scope: dict = {}
        exec(f"from {path} import {names}", scope)
    for function in re.findall(r"original\.(\w+)", section[1]):
        assert hasattr(original, function), function
