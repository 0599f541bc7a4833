"""Code written against the original compiled op runs on this package's op, unmodified."""

import functools
import importlib
import inspect
import sys

import pytest
import torch

from dino_kernels.integrations import original

# A checkout's own files use the op like this: names, argument order and what is returned are the original's.
CHECKOUT = """
import torch
import MultiScaleDeformableAttention as MSDA


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return MSDA.ms_deform_attn_forward(value, shapes, starts, locations, weights, ctx.step)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, ctx.step
        )
        return grad_value, None, None, grad_locations, grad_weights, None
"""

SHAPES = [(6, 4), (3, 2)]


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch):
    """Remove what a test puts into sys.modules."""
    for name in (original.MODULE_NAME, "checkout", "groundingdino", "groundingdino._C"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]


@pytest.fixture(params=["auto", "reference"])
def any_backend(request, monkeypatch):
    """The function-level backward takes two ways: a kernel's backward, or autograd through the reference."""
    if request.param == "reference":
        monkeypatch.setattr(original.backends, "resolve", lambda requested, arguments: "reference")


def inputs(batch=2, queries=5, heads=2, channels=4, points=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = sum(height * width for height, width in SHAPES)
    value = uniform(batch, rows, heads, channels) - 0.5
    locations = 1.4 * uniform(batch, queries, heads, len(SHAPES), points, 2) - 0.2  # some lie outside
    weights = uniform(batch, queries, heads, len(SHAPES), points) + 0.1
    weights = weights / weights.sum((-1, -2), keepdim=True)
    shapes = torch.tensor(SHAPES)
    sizes = shapes.prod(1)
    return value, shapes, sizes.cumsum(0) - sizes, locations, weights


def four_corners(value, locations, weights):
    """The op by its definition: each sample is four weighted rows of its level. Shares no code with the package."""
    batch, _, heads, channels = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, channels)
    start = 0
    images = torch.arange(batch)[:, None, None, None]
    head = torch.arange(heads)[None, None, :, None]
    for level, (height, width) in enumerate(SHAPES):
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        for dy in (0, 1):
            for dx in (0, 1):
                column, row = x.detach().floor() + dx, y.detach().floor() + dy
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                index = start + row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
                share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside * weights[:, :, :, level]
                output = output + (value[images, index, head] * share[..., None]).sum(3)
        start += height * width
    return output.flatten(2)


def gradients(function, tensors, grad_output):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def import_checkout(tmp_path, monkeypatch):
    (tmp_path / "checkout.py").write_text(CHECKOUT)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("checkout")


def test_unmodified_checkout_gives_the_definition_and_its_gradients(tmp_path, monkeypatch, any_backend):
    original.install()
    checkout = import_checkout(tmp_path, monkeypatch)
    value, shapes, starts, locations, weights = inputs()
    grad_output = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = gradients(
        lambda v, loc, w: checkout.Attend.apply(v, shapes, starts, loc, w, 64), (value, locations, weights), grad_output
    )
    exact = gradients(four_corners, (value, locations, weights), grad_output)
    for got, wanted in zip(ours, exact, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_import_fails_without_install():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(original.MODULE_NAME)


@pytest.mark.parametrize("channels", [30, 71])  # two of those that the original's own check uses
def test_checkout_passes_gradcheck(channels, tmp_path, monkeypatch):
    original.install()
    checkout = import_checkout(tmp_path, monkeypatch)
    value, shapes, starts, locations, weights = inputs(batch=1, queries=2, channels=channels, points=2)
    # Numerical differences need samples away from cell borders: put each a quarter of a pixel past a centre.
    size = shapes.flip(1)[None, None, None, :, None]
    locations = ((locations * size).floor() + 0.75) / size
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def attend(v, loc, w):
        return checkout.Attend.apply(v, shapes, starts, loc, w, 2)

    assert torch.autograd.gradcheck(attend, leaves)


def test_autograd_function_and_core_function_agree_with_the_definition():
    value, shapes, starts, locations, weights = inputs()
    exact = four_corners(value, locations, weights)
    applied = original.MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    core = original.ms_deform_attn_core_pytorch(value, shapes, locations, weights)
    core_of_list = original.ms_deform_attn_core_pytorch(value, SHAPES, locations, weights)
    for got in (applied, core, core_of_list):
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-13)


def test_autograd_function_is_differentiable():
    value, shapes, starts, locations, weights = inputs()
    grad_output = torch.ones(2, 5, 8, dtype=torch.float64)
    ours = gradients(
        lambda v, loc, w: original.MSDeformAttnFunction.apply(v, shapes, starts, loc, w, 64),
        (value, locations, weights),
        grad_output,
    )
    for got, wanted in zip(ours, gradients(four_corners, (value, locations, weights), grad_output), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch", [3, 5])
def test_batch_need_not_be_a_multiple_of_im2col_step(batch):
    value, shapes, starts, locations, weights = inputs(batch=batch)
    output = original.ms_deform_attn_forward(value, shapes, starts, locations, weights, 2)
    torch.testing.assert_close(output, four_corners(value, locations, weights), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_returns_each_gradient_in_its_inputs_shape_and_dtype(dtype, any_backend):
    value, shapes, starts, locations, weights = inputs(dtype=dtype)
    locations = locations.float()
    grad_output = torch.ones(2, 8, 5, dtype=dtype).transpose(1, 2)  # not contiguous
    grads = original.ms_deform_attn_backward(value, shapes, starts, locations, weights, grad_output, 64)
    for grad, tensor in zip(grads, (value, locations, weights), strict=True):
        assert grad.shape == tensor.shape and grad.dtype == tensor.dtype and grad.isfinite().all()


def test_install_twice_returns_the_same_module():
    assert original.install() is original.install()


def test_install_refuses_to_hide_another_module(monkeypatch):
    theirs = type(sys)(original.MODULE_NAME)
    theirs.__file__ = "/site-packages/MultiScaleDeformableAttention.so"
    monkeypatch.setitem(sys.modules, original.MODULE_NAME, theirs)
    with pytest.raises(RuntimeError, match=r"already imported \(/site-packages/.*replace=True"):
        original.install()
    assert sys.modules[original.MODULE_NAME] is theirs
    assert original.install(replace=True) is not theirs
    assert importlib.import_module(original.MODULE_NAME).ms_deform_attn_forward is original.ms_deform_attn_forward


def test_install_under_the_name_groundingdino_imports(tmp_path, monkeypatch):
    (tmp_path / "groundingdino").mkdir()
    (tmp_path / "groundingdino" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    original.install("groundingdino._C")
    scope = {}
    exec("from groundingdino import _C", scope)
    assert scope["_C"].ms_deform_attn_forward is original.ms_deform_attn_forward
    assert original.MODULE_NAME not in sys.modules


def levels_of(value):
    """Values as D-FINE passes them: of each level [B, M, D, H * W]."""
    return value.permute(0, 2, 3, 1).split([height * width for height, width in SHAPES], dim=-1)


@pytest.mark.parametrize("form", ["rt_detr_v2", "d_fine"])
@pytest.mark.parametrize("points", [[3, 3], [1, 5], (2, 4)])
def test_the_core_of_rt_detr_v2_and_d_fine_agrees_with_the_definition(form, points):
    """Levels have their own numbers of points, and samples one dimension, level by level."""
    value, shapes, _, _, _ = inputs()
    generator = torch.Generator().manual_seed(2)
    locations = torch.rand(2, 5, 2, 6, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 5, 2, 6, generator=generator, dtype=torch.float64)
    parts = zip(locations.split(list(points), 3), weights.split(list(points), 3), strict=True)
    exact, start = torch.zeros(2, 5, 8, dtype=torch.float64), 0
    for (height, width), (some, shares) in zip(SHAPES, parts, strict=True):
        rows = value[:, start : start + height * width]
        level = rows.permute(0, 2, 3, 1).reshape(4, 4, height, width)
        grid = 2 * some.transpose(1, 2).flatten(0, 1) - 1
        sampled = torch.nn.functional.grid_sample(level, grid, align_corners=False).view(2, 2, 4, 5, -1)
        exact += (sampled * shares.transpose(1, 2)[:, :, None]).sum(-1).permute(0, 3, 1, 2).flatten(2)
        start += height * width
    given = value if form == "rt_detr_v2" else levels_of(value)
    core = functools.partial(original.deformable_attention_core_func_v2, method="default")  # as both repositories do
    for sizes in (shapes, SHAPES, [list(size) for size in SHAPES]):
        found = core(given, sizes, locations, weights, points)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


def test_discrete_sampling_is_refused_in_words():
    value, shapes, _, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"method must be 'default' .* got 'discrete'. Keep the repository's function"):
        original.deformable_attention_core_func_v2(
            value, shapes, locations.flatten(3, 4), weights.flatten(3), [3, 3], method="discrete"
        )


CORES = {  # name of the function: its parameters in the repositories
    "ms_deform_attn_core_pytorch": "value value_spatial_shapes sampling_locations attention_weights",
    "deformable_attention_core_func_v2": "value value_spatial_shapes sampling_locations attention_weights "
    "num_points_list method",
}


@pytest.mark.parametrize("name", CORES)
def test_cores_take_the_arguments_of_the_repositories_by_name(name):
    assert list(inspect.signature(getattr(original, name)).parameters) == CORES[name].split()


@pytest.mark.parametrize("name", [5, None, "", "a b", "groundingdino."])
def test_install_refuses_what_is_no_name_of_a_module(name):
    with pytest.raises(TypeError, match=r"install: name must be the name of a module, such as 'MultiScale.*got "):
        original.install(name)
