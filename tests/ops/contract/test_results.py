"""Results have the documented shapes and dtypes, also if a size is 0, and inputs stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.contract.calls import ATTENTION, OPS, Inputs, assert_close, call, perform, tensors_of

EVERY_DTYPE = pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
Described = dict[str, tuple[list[int], torch.dtype]]


def documented(op: str, inputs: Inputs) -> Described:
    """Shapes and dtypes as the public functions document them."""
    if op in ATTENTION:
        value = inputs["value"]
        batch, _, heads, channels = value.shape
        queries = inputs["sampling_locations" if op == "ms_deform_attn" else "sampling_offsets"].shape[1]
        grads = {f"grad_{name}": tensor for name, tensor in tensors_of(op, inputs) if tensor.requires_grad}
        described = {name: (list(tensor.shape), tensor.dtype) for name, tensor in grads.items()}
        return {"output": ([batch, queries, heads * channels], value.dtype), **described}
    if op == "linear_sum_assignment":
        matrices, rows, columns = inputs["cost"].shape
        problems = len(inputs["offsets"]) - 1
        return {
            "columns": ([matrices, rows], torch.int64),
            "status": ([matrices, problems], torch.int32),
            "objective": ([matrices, problems], torch.float64),
            "row_duals": ([matrices, rows], torch.float64),
            "column_duals": ([matrices, problems, columns], torch.float64),
        }
    sets, images, queries, _ = inputs["logits"].shape
    targets = len(inputs["targets"])
    if op == "matching_cost":
        return {"output": ([sets, targets, queries], torch.float32)}
    return {
        "query_idx": ([sets, targets], torch.int64),
        "status": ([sets, images], torch.int32),
        "objective": ([sets, images], torch.float64),
        "target_duals": ([sets, targets], torch.float64),
        "query_duals": ([sets, images, queries], torch.float64),
    }


def described(results: dict[str, Tensor]) -> Described:
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in results.items()}


@EVERY_DTYPE
def test_shapes_and_dtypes_are_those_documented(subject, dtype):
    inputs = subject.inputs(dtype)
    results = perform(subject.op, inputs, subject.backend)
    assert described(results) == documented(subject.op, inputs)
    devices = {tensor.device for _, tensor in tensors_of(subject.op, inputs)}
    assert {tensor.device for tensor in results.values()} == devices


@pytest.mark.parametrize("number", range(4))
@EVERY_DTYPE
def test_a_size_may_be_zero(subject, deterministic, dtype, number):
    """Whatever is left is what the reference returns. Deterministic mode fills new memory with NaN."""
    empty: tuple[dict[str, Any], ...] = OPS[subject.op].empty
    inputs = subject.inputs(dtype, **empty[number % len(empty)])
    results = perform(subject.op, inputs, subject.backend)
    assert described(results) == documented(subject.op, inputs)
    torch.use_deterministic_algorithms(False)  # PyTorch has none for the backward of grid_sample on a GPU
    assert_close(results, perform(subject.op, inputs, "reference"), subject.backend)


@pytest.mark.parametrize("any_op", ATTENTION)
def test_the_sum_of_an_empty_output_has_gradients(subject):
    """`sum().backward()` passes a gradient of strides 0, which no layer copies: it is empty, hence contiguous."""
    for sizes in OPS[subject.op].empty[:3]:
        inputs = subject.inputs(**sizes)
        call(subject.op, inputs, subject.backend).sum().backward()
        for path, argument in tensors_of(subject.op, inputs):
            if argument.requires_grad:
                assert argument.grad is not None and argument.grad.shape == argument.shape, path
                assert (argument.grad == 0).all(), path


@EVERY_DTYPE
def test_inputs_are_not_changed(subject, dtype):
    inputs = subject.inputs(dtype)
    before = {path: tensor.detach().clone() for path, tensor in tensors_of(subject.op, inputs)}
    perform(subject.op, inputs, subject.backend)
    for path, tensor in tensors_of(subject.op, inputs):
        torch.testing.assert_close(tensor.detach(), before[path], rtol=0, atol=0, equal_nan=True, msg=path)
