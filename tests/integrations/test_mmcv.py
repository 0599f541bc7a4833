"""mmcv's deformable attention module gives the same results on this package's op.

mmcv with compiled ops does not install everywhere, so the module is a stub with mmcv's interface and conventions,
written for this test; where mmcv's Python files are installed (mmcv or mmcv-lite), the same tests run on them too.
"""

import importlib
import sys
import types

import pytest
import torch

from dino_kernels.integrations import mmcv as integration

# What mmcv 2.x does, in as few lines: both functions are looked up as globals of the module at every call.
STUB = '''
import torch
from torch import nn


class MultiScaleDeformableAttnFunction:
    @staticmethod
    def apply(*arguments):
        raise RuntimeError("the compiled op of the stub was called")


def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    """Sum of weighted samples, [bs, num_queries, heads * channels]."""
    total, start = 0, 0
    for level, (height, width) in enumerate(value_spatial_shapes.tolist()):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).unflatten(-1, (height, width))
        start += height * width
        grid = (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2)
        samples = nn.functional.grid_sample(image.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
        weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * weights).sum(-1)
    return total.unflatten(0, value.shape[::2][:1] + value.shape[2:3]).flatten(1, 2).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    def __init__(self, embed_dims=256, num_heads=8, num_levels=4, num_points=4, im2col_step=64, dropout=0.1,
                 batch_first=False, norm_cfg=None, init_cfg=None, value_proj_ratio=1.0):
        super().__init__()
        self.grid = num_heads, num_levels, num_points
        self.batch_first, self.im2col_step = batch_first, im2col_step
        samples = num_heads * num_levels * num_points
        width = int(embed_dims * value_proj_ratio)
        self.dropout = nn.Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, width)
        self.output_proj = nn.Linear(width, embed_dims)

    def forward(self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
                reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs):
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.grid[0], -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*self.grid, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.grid[0], -1)).softmax(-1)
        weights = weights.unflatten(-1, self.grid[1:])
        reference = reference_points[:, :, None, :, None]
        if reference.shape[-1] == 2:
            locations = reference + offsets / spatial_shapes.flip(1)[:, None]
        else:
            locations = reference[..., :2] + offsets / self.grid[2] * reference[..., 2:] * 0.5
        if value.is_cuda:
            output = MultiScaleDeformableAttnFunction.apply(
                value, spatial_shapes, level_start_index, locations, weights, self.im2col_step)
        else:
            output = multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity
'''

SHAPES = [(7, 9), (4, 5), (2, 3)]


def take_mmcv():
    """Remove mmcv from sys.modules and return what was there."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mmcv"}


@pytest.fixture(autouse=True)
def mmcv_unimported():
    before = take_mmcv()
    yield
    take_mmcv()
    sys.modules.update(before)


INSTALLED = {}  # mmcv cannot be imported twice: its registries refuse


@pytest.fixture(params=["stub", "installed"])
def attention_class(request, tmp_path, monkeypatch):
    """mmcv.ops.MultiScaleDeformableAttention, of the stub or of the installed package."""
    if request.param == "stub":
        ops = tmp_path / "mmcv" / "ops"
        ops.mkdir(parents=True)
        (tmp_path / "mmcv" / "__init__.py").write_text("")
        (ops / "__init__.py").write_text("from .multi_scale_deform_attn import MultiScaleDeformableAttention")
        (ops / "multi_scale_deform_attn.py").write_text(STUB)
        monkeypatch.syspath_prepend(tmp_path)
    else:
        sys.modules.update(INSTALLED)
        pytest.importorskip("mmcv", reason="mmcv is not installed; the stub stands for it")
        try:
            importlib.import_module("mmcv._ext")
        except ImportError:  # mmcv-lite: Python files without the compiled ops, which nothing here calls
            compiled = types.ModuleType("mmcv._ext")
            compiled.__getattr__ = lambda name: None if name.startswith("__") else print
            monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    yield importlib.import_module("mmcv.ops").MultiScaleDeformableAttention
    integration.uninstall()
    if request.param == "installed":
        INSTALLED.update(take_mmcv())


def arguments(batch_first, coordinates, queries=6):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = sum(height * width for height, width in SHAPES)
    sequence = (lambda n: (2, n, 32)) if batch_first else (lambda n: (n, 2, 32))
    shapes = torch.tensor(SHAPES)
    sizes = shapes.prod(1)
    mask = torch.zeros(2, rows, dtype=torch.bool)
    mask[1, ::3] = True
    return {
        "query": normal(*sequence(queries)).requires_grad_(),
        "value": normal(*sequence(rows)).requires_grad_(),
        "identity": normal(*sequence(queries)),
        "query_pos": normal(*sequence(queries)),
        "key_padding_mask": mask,
        "reference_points": normal(2, queries, len(SHAPES), coordinates).sigmoid().requires_grad_(),
        "spatial_shapes": shapes,
        "level_start_index": sizes.cumsum(0) - sizes,
    }


def run(module, inputs):
    torch.manual_seed(3)  # dropout
    output = module(**inputs)
    leaves = [*module.parameters(), *(x for x in inputs.values() if x.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def build(attention_class, **options):
    torch.manual_seed(0)
    module = attention_class(32, 4, len(SHAPES), 4, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"value_proj_ratio": 2.0}, {"dropout": 0.0}], ids=lambda o: str(o)
)
def test_module_gives_the_same_output_and_gradients_after_install(attention_class, options, coordinates):
    module = build(attention_class, **options)
    inputs = arguments(options.get("batch_first", False), coordinates)
    before = run(module, inputs)
    assert integration.install() == [
        "mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction",
        "mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch",
    ]
    for ours, theirs in zip(run(module, inputs), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_install_is_seen_by_the_module_and_uninstall_undoes_it(attention_class, monkeypatch):
    module_file = sys.modules["mmcv.ops.multi_scale_deform_attn"]
    before = module_file.multi_scale_deformable_attn_pytorch
    calls = []
    monkeypatch.setitem(
        integration._REPLACEMENTS,
        "multi_scale_deformable_attn_pytorch",
        lambda *args: calls.append(1) or integration.multi_scale_deformable_attn_pytorch(*args),
    )
    integration.install()
    integration.install()
    build(attention_class)(**arguments(False, 2))
    assert calls == [1]
    integration.uninstall()
    assert module_file.multi_scale_deformable_attn_pytorch is before


def test_function_takes_mmcvs_arguments():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 89, 4, 8, generator=generator, requires_grad=True)
    locations = torch.rand(2, 6, 4, 3, 4, 2, generator=generator)
    weights = torch.rand(2, 6, 4, 3, 4, generator=generator)
    shapes = torch.tensor(SHAPES)
    starts = torch.tensor([0, 63, 83])
    output = integration.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    plain = integration.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    assert output.shape == (2, 6, 32) and torch.equal(output, plain)
    (grad,) = torch.autograd.grad(output.sum(), value)
    assert grad.abs().max() > 0


def test_install_without_mmcv_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(ImportError, match="mmcv-lite has none"):
        integration.install()
