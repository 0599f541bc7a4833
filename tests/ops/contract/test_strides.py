"""Any strides and any storage offset give the result of a contiguous copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dino_kernels
from dino_kernels import fused_ms_deform_attn
from dino_kernels.testing import Case, Result, random_grad_output, run
from tests.comparison import ORDERED, assert_same_bits

CASE = Case("strided", 2, 23, 4, 16, ((9, 11), (5, 6)), (4, 4))
BOXES = Case("strided_boxes", 2, 23, 4, 16, ((9, 11), (5, 6)), (4, 4), reference_coordinates=4, mask=True)


def permuted_storage(tensor: Tensor, *order: int) -> Tensor:
    """The same tensor with its dimensions stored in another order."""
    inverse = [order.index(i) for i in range(len(order))]
    return tensor.detach().permute(order).contiguous().permute(inverse)


def sequence_first(tensor: Tensor) -> Tensor:
    """As batch_first=False code stores it: [S, B, ...] memory seen as [B, S, ...]."""
    return permuted_storage(tensor, 1, 0, *range(2, tensor.dim()))


def last_dimension_first(tensor: Tensor) -> Tensor:
    return permuted_storage(tensor, tensor.dim() - 1, *range(tensor.dim() - 1))


def heads_before_queries(tensor: Tensor) -> Tensor:
    return permuted_storage(tensor, 0, 2, 1, *range(3, tensor.dim()))


def every_second_row(tensor: Tensor) -> Tensor:
    wide = tensor.detach().repeat_interleave(2, dim=1)
    wide[:, 1::2] = float("nan") if tensor.is_floating_point() else True
    return wide[:, ::2]


def every_second_element(tensor: Tensor) -> Tensor:
    wide = tensor.detach().repeat_interleave(2, dim=-1)
    wide[..., 1::2] = float("nan") if tensor.is_floating_point() else True
    return wide[..., ::2]


def inside_a_wider_tensor(tensor: Tensor) -> Tensor:
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), 7).to(tensor)
    wide[..., 1:-2] = tensor.detach()
    return wide[..., 1:-2]


def misaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    moved = storage[1:].view(tensor.shape).copy_(tensor.detach())
    assert moved.data_ptr() % 64 == tensor.element_size()
    return moved


VIEWS = [sequence_first, last_dimension_first, heads_before_queries, every_second_row, every_second_element]
VIEWS += [inside_a_wider_tensor, misaligned]


def assert_same(op: str, inputs: dict[str, Any], viewed: dict[str, Any], backend: str) -> None:
    for name, argument in viewed.items():
        if isinstance(argument, Tensor):
            assert torch.equal(argument, inputs[name]), f"the test changed {name}"
            viewed[name] = argument.requires_grad_(inputs[name].requires_grad)
    assert_close(run(op, viewed, backend), run(op, inputs, backend), backend)


def assert_close(result: Result, expected: Result, backend: str) -> None:
    """Other addresses may get another kernel: on a GPU, one that adds a dot product's channels in another order."""
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        rtol = atol = 1e-6
        if backend not in ORDERED and tensor.dtype != torch.float64:
            rtol, atol = max(1e-5, torch.finfo(tensor.dtype).eps), 1e-5
        torch.testing.assert_close(tensor, wanted, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_strided_floating_point_inputs(make_inputs, op, kernel, view):
    inputs = make_inputs(op, BOXES if op.startswith("fused") else CASE, torch.float32, kernel)
    floating = [name for name, argument in inputs.items() if isinstance(argument, Tensor) and argument.requires_grad]
    for name in floating:
        if view is heads_before_queries and name == "reference_points":
            continue
        assert_same(op, inputs, {**inputs, name: view(inputs[name])}, kernel)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("view", [sequence_first, inside_a_wider_tensor, misaligned], ids=lambda view: view.__name__)
def test_strided_inputs_of_every_dtype(make_inputs, op, kernel, dtype, view):
    inputs = make_inputs(op, BOXES if op.startswith("fused") else CASE, dtype, kernel)
    floating = [name for name, argument in inputs.items() if isinstance(argument, Tensor) and argument.requires_grad]
    assert_same(op, inputs, {**inputs, **{name: view(inputs[name]) for name in floating}}, kernel)


@pytest.mark.parametrize("view", [every_second_element, last_dimension_first, inside_a_wider_tensor, misaligned])
def test_strided_mask(make_inputs, kernel, view):
    op = "fused_ms_deform_attn"
    inputs = make_inputs(op, BOXES, torch.float32, kernel)
    assert_same(op, inputs, {**inputs, "value_mask": view(inputs["value_mask"])}, kernel)


@pytest.mark.parametrize("name", ["spatial_shapes", "level_start_index"])
def test_strided_level_tables(make_inputs, op, kernel, name):
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    assert_same(op, inputs, {**inputs, name: inside_a_wider_tensor(inputs[name])}, kernel)
    assert_same(op, inputs, {**inputs, name: last_dimension_first(inputs[name])}, kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_offsets_and_logits_that_are_slices_of_one_projection(make_inputs, kernel, dtype):
    inputs = make_inputs("fused_ms_deform_attn", BOXES, dtype, kernel)
    names = ("sampling_offsets", "attention_logits")
    sizes = [inputs[name][0, 0].numel() for name in names]
    projection = torch.cat([inputs[name].detach().flatten(2) for name in names], -1).requires_grad_()
    offsets, logits = projection.split(sizes, -1)
    sliced = {**inputs, "sampling_offsets": offsets.view(inputs["sampling_offsets"].shape)}
    sliced["attention_logits"] = logits.view(inputs["attention_logits"].shape)
    assert not sliced["sampling_offsets"].is_contiguous()
    output = fused_ms_deform_attn(**sliced, backend=kernel)
    expected = run("fused_ms_deform_attn", inputs, kernel)
    assert torch.equal(output, expected.output)
    (grad,) = torch.autograd.grad(output, projection, random_grad_output(output))
    assert torch.equal(grad, torch.cat([expected.grads[name].flatten(2) for name in names], -1))


def test_reference_points_expanded_over_images_and_levels(make_inputs, kernel):
    op = "fused_ms_deform_attn"
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    shared = inputs["reference_points"].detach()[:1, :, :1].clone()
    expanded = shared.expand(2, -1, 2, -1)
    assert 0 in expanded.stride()
    dense = expanded.clone().requires_grad_()
    assert_same(op, {**inputs, "reference_points": dense}, {**inputs, "reference_points": expanded}, kernel)


@pytest.mark.parametrize("name", ["sampling_offsets", "attention_logits", "value"])
def test_inputs_expanded_over_images(make_inputs, kernel, name):
    op = "fused_ms_deform_attn"
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    expanded = inputs[name].detach()[:1].expand_as(inputs[name])
    dense = expanded.clone().requires_grad_()
    assert_same(op, {**inputs, name: dense}, {**inputs, name: expanded}, kernel)


def spread(grad: Tensor, how: str) -> Tensor:
    return {
        "ones expanded from a scalar": lambda: grad.new_ones(()).expand_as(grad),
        "one query expanded": lambda: grad[:, :1].expand_as(grad),
        "one channel expanded": lambda: grad[..., :1].expand_as(grad),
        "sequence first": lambda: sequence_first(grad),
        "transposed": lambda: last_dimension_first(grad),
        "every second element": lambda: every_second_element(grad),
        "misaligned": lambda: misaligned(grad),
    }[how]()


@pytest.mark.parametrize(
    "how",
    ["ones expanded from a scalar", "one query expanded", "one channel expanded", "sequence first", "transposed"]
    + ["every second element", "misaligned"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_strided_grad_output(make_inputs, deterministic, op, kernel, dtype, how):
    inputs = make_inputs(op, CASE, dtype, kernel)
    size = (CASE.batch, CASE.queries, CASE.heads * CASE.channels)
    grad = spread(random_grad_output(inputs["value"].new_empty(size)), how)
    result, expected = run(op, inputs, kernel, grad), run(op, inputs, kernel, grad.clone().contiguous())
    if how == "misaligned":
        assert_close(result, expected, kernel)
    if how != "misaligned" or kernel in ORDERED:
        assert_same_bits(result, expected)


def odd_strides_at_size_one(tensor: Tensor) -> Tensor:
    """Dimensions of size 1 have no meaningful stride; PyTorch calls such a tensor contiguous and copies nothing."""
    strides = [7 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.detach().clone().as_strided(tensor.shape, strides)


@pytest.mark.parametrize(
    ("queries", "heads", "channels", "points"), [(1, 1, 1, 1), (5, 1, 1, 1), (5, 2, 1, 2), (5, 1, 8, 1), (1, 2, 8, 2)]
)
def test_dimensions_of_size_one_may_have_any_stride(make_inputs, op, kernel, queries, heads, channels, points):
    case = Case("ones", 1, queries, heads, channels, ((3, 4),), (points,), mask=True)
    inputs = make_inputs(op, case, torch.float32, kernel)
    viewed = {name: odd_strides_at_size_one(x) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    assert_same(op, inputs, viewed, kernel)
    grad = odd_strides_at_size_one(torch.ones(1, queries, heads * channels, device=inputs["value"].device))
    run(op, inputs, kernel, grad)


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 5), (0, 0)])
def test_the_sum_of_an_empty_output_has_gradients(make_inputs, op, kernel, batch, queries):
    """`sum().backward()` hands over a gradient of strides 0, which stays so: it is empty, hence contiguous."""
    inputs = make_inputs(op, Case("empty", batch, queries, 2, 8, ((3, 4),), (2,)), torch.float32, kernel)
    output = getattr(dino_kernels, op)(**inputs, backend=kernel)
    output.sum().backward()
    for name, argument in inputs.items():
        if isinstance(argument, Tensor) and argument.requires_grad:
            assert argument.grad is not None and argument.grad.shape == argument.shape, name
            assert (argument.grad == 0).all(), name
