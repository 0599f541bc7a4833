"""Any strides and any storage offset give the result of a contiguous copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dino_kernels import fused_ms_deform_attn
from dino_kernels.testing import random_grad_output
from tests.comparison import ORDERED
from tests.ops.contract.calls import (
    ATTENTION,
    OPS,
    Inputs,
    assert_close,
    assert_same,
    attention_inputs,
    get,
    perform,
    put,
    tensors_of,
)
from tests.ops.contract.conftest import Subject
from tests.selection import INTERPRETED

EVERY_DTYPE = pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])


def stored_in_order(tensor: Tensor, *order: int) -> Tensor:
    """The same tensor with its dimensions stored in another order."""
    inverse = [order.index(i) for i in range(len(order))]
    return tensor.permute(order).contiguous().permute(inverse)


def gap_of(tensor: Tensor) -> float | int | bool:
    """Return a number that no kernel may read: NaN, or one that shows in a result."""
    return float("nan") if tensor.is_floating_point() else 1


def second_dimension_first(tensor: Tensor) -> Tensor:
    """As `batch_first=False` code stores it."""
    dimensions = list(range(tensor.dim()))
    return stored_in_order(tensor, *dimensions[1:2], 0, *dimensions[2:])


def last_dimension_first(tensor: Tensor) -> Tensor:
    return stored_in_order(tensor, tensor.dim() - 1, *range(tensor.dim() - 1))


def middle_dimensions_swapped(tensor: Tensor) -> Tensor:
    """Heads before queries."""
    return stored_in_order(tensor, 0, 2, 1, *range(3, tensor.dim())) if tensor.dim() > 2 else tensor


def reversed_dimensions(tensor: Tensor) -> Tensor:
    return stored_in_order(tensor, *reversed(range(tensor.dim())))


def every_second_row(tensor: Tensor) -> Tensor:
    before = (slice(None),) * min(1, tensor.dim() - 1)
    wide = tensor.repeat_interleave(2, len(before))
    wide[(*before, slice(1, None, 2))] = gap_of(tensor)
    return wide[(*before, slice(None, None, 2))]


def every_second_element(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, gap_of(tensor))], -1)[..., 0]


def inside_a_wider_tensor(tensor: Tensor) -> Tensor:
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), gap_of(tensor))
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def misaligned(tensor: Tensor) -> Tensor:
    moved = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    assert moved.data_ptr() % 64 == tensor.element_size()
    return moved


VIEWS = [second_dimension_first, inside_a_wider_tensor, misaligned, last_dimension_first, middle_dimensions_swapped]
VIEWS += [reversed_dimensions, every_second_row, every_second_element]


def groups(subject: Subject, inputs: Inputs) -> list[list[tuple[str, Tensor]]]:
    """Tensors whose addresses vary together: one after the other, or all at once where a call takes long."""
    tensors = list(tensors_of(subject.op, inputs))
    return [tensors] if subject.backend == INTERPRETED else [[each] for each in tensors]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_each_argument_may_have_any_strides(subject, view):
    op, inputs = subject.op, subject.inputs()
    expected = perform(op, inputs, subject.backend)
    for together in groups(subject, inputs):
        viewed = inputs
        for path, tensor in together:
            viewed = put(viewed, path, view(tensor.detach()))
            torch.testing.assert_close(get(viewed, path), tensor, rtol=0, atol=0, equal_nan=True)  # the test's claim
        assert_close(perform(op, viewed, subject.backend), expected, subject.backend)


@EVERY_DTYPE
@pytest.mark.parametrize("view", VIEWS[:3], ids=lambda view: view.__name__)
def test_all_arguments_may_have_any_strides_in_every_dtype(subject, view, dtype):
    inputs = subject.inputs(dtype)
    viewed = inputs
    for path, tensor in tensors_of(subject.op, inputs):
        viewed = put(viewed, path, view(tensor.detach()))
    expected = perform(subject.op, inputs, subject.backend)
    assert_close(perform(subject.op, viewed, subject.backend), expected, subject.backend)


def test_arguments_may_be_expanded(subject):
    op, inputs = subject.op, subject.inputs()
    for together in groups(subject, inputs):
        for dimension in range(max(tensor.dim() for _, tensor in together)):
            viewed = copied = inputs
            for path, tensor in together:
                if tensor.is_floating_point() and dimension < tensor.dim():
                    expanded = tensor.detach().narrow(dimension, 0, 1).expand_as(tensor)
                    assert 0 in expanded.stride() or tensor.shape[dimension] == 1
                    viewed, copied = put(viewed, path, expanded), put(copied, path, expanded.clone())
            if viewed is not inputs:
                result, expected = (perform(op, each, subject.backend) for each in (viewed, copied))
                assert_close(result, expected, subject.backend)


def odd_strides_at_size_one(tensor: Tensor) -> Tensor:
    """Dimensions of size 1 have no meaningful stride; PyTorch calls such a tensor contiguous and copies nothing."""
    strides = [7 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.detach().clone().as_strided(tensor.shape, strides)


ONES = {
    "ms_deform_attn": [
        {"batch": 1, "levels": ((3, 4),), "queries": queries, "heads": heads, "channels": channels, "points": points}
        for queries, heads, channels, points in ((1, 1, 1, 1), (5, 1, 1, 1), (5, 2, 1, 2), (5, 1, 8, 1), (1, 2, 8, 2))
    ],
    "matching_cost": [
        {"sets": 1, "queries": 5, "targets": (3,)},
        {"sets": 1, "queries": 1, "targets": (1,), "classes": 1},
        {"sets": 2, "queries": 4, "targets": (1,), "classes": 1},
    ],
    "linear_sum_assignment": [
        {"problems": 1, "rows": 1, "columns": 1},
        {"problems": 3, "rows": 1, "columns": 5},
        {"problems": 1, "rows": 5, "columns": 1},
    ],
}
ONES |= {"fused_ms_deform_attn": ONES["ms_deform_attn"], "hungarian_match": ONES["matching_cost"]}


def test_dimensions_of_size_one_may_have_any_stride(subject):
    assert ONES.keys() == OPS.keys()
    for sizes in ONES[subject.op]:
        inputs = subject.inputs(**sizes)
        viewed = inputs
        for path, tensor in tensors_of(subject.op, inputs):
            viewed = put(viewed, path, odd_strides_at_size_one(tensor))
        expected = perform(subject.op, inputs, subject.backend)
        assert_close(perform(subject.op, viewed, subject.backend), expected, subject.backend)
        if subject.op in ATTENTION:
            grad = odd_strides_at_size_one(torch.ones_like(expected["output"]))
            perform(subject.op, inputs, subject.backend, grad)


GRADIENTS = {
    "ones expanded from a scalar": lambda grad: grad.new_ones(()).expand_as(grad),
    "one query expanded": lambda grad: grad[:, :1].expand_as(grad),
    "one channel expanded": lambda grad: grad[..., :1].expand_as(grad),
    "sequence first": second_dimension_first,
    "transposed": last_dimension_first,
    "every second element": every_second_element,
    "misaligned": misaligned,
}


@pytest.mark.parametrize("how", GRADIENTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("any_op", ATTENTION)
def test_the_gradient_of_the_output_may_have_any_strides(subject, deterministic, dtype, how):
    inputs, kernel = subject.inputs(dtype), subject.backend
    grad = GRADIENTS[how](random_grad_output(perform(subject.op, inputs, kernel)["output"]))
    result, expected = (perform(subject.op, inputs, kernel, each) for each in (grad, grad.clone().contiguous()))
    if how == "misaligned":
        assert_close(result, expected, kernel)
    if how != "misaligned" or kernel in ORDERED:
        assert_same(result, expected)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("any_op", ["fused_ms_deform_attn"])
def test_offsets_and_logits_that_are_slices_of_one_projection(subject, dtype):
    inputs, kernel = subject.inputs(dtype), subject.backend
    names = ("sampling_offsets", "attention_logits")
    sizes = [inputs[name][0, 0].numel() for name in names]
    projection = torch.cat([inputs[name].detach().flatten(2) for name in names], -1).requires_grad_()
    slices = {
        name: part.view(inputs[name].shape) for name, part in zip(names, projection.split(sizes, -1), strict=True)
    }
    assert not slices["sampling_offsets"].is_contiguous()
    output = fused_ms_deform_attn(**inputs | slices, backend=kernel)
    expected = perform(subject.op, inputs, kernel)
    assert torch.equal(output, expected["output"])
    (grad,) = torch.autograd.grad(output, projection, random_grad_output(output))
    assert torch.equal(grad, torch.cat([expected[f"grad_{name}"].flatten(2) for name in names], -1))


@pytest.mark.parametrize("op", ATTENTION)
def test_the_views_are_not_contiguous(op):
    """A precondition of the tests above."""
    value = attention_inputs(op, "cpu")["value"].detach()
    assert all(not view(value).is_contiguous() for view in VIEWS if view is not misaligned)
