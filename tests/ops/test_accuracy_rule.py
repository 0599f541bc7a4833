"""The accuracy assertion can fail: it catches small planted errors, and names the tensor they are in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels.ops.ms_deform_attn.reference import host_shapes
from dino_kernels.testing import Case, Result, assert_result_accurate, random_grad_output, run, sample_inputs

CASE = Case("planted", 2, 60, 4, 16, ((12, 15), (6, 8), (3, 4)), (4, 4, 4), layout="local")
OP = "ms_deform_attn"


def classic_inputs(dtype: torch.dtype) -> dict[str, Any]:
    return sample_inputs(OP, CASE, dtype)


def rerun(inputs: dict[str, Any], **changes: Tensor) -> Result:
    """The reference in float64 on changed inputs, rounded as a kernel would round it."""
    changed = {**inputs, **changes}
    for name, argument in changed.items():
        if isinstance(argument, Tensor) and argument.is_floating_point():
            changed[name] = argument.detach().double().requires_grad_()
    size = (*inputs["sampling_locations"].shape[:2], CASE.heads * CASE.channels)
    grad_output = random_grad_output(inputs["value"].new_empty(size))
    result = run(OP, changed, "reference", grad_output.double())
    grads = {name: grad.to(inputs[name].dtype) for name, grad in result.grads.items()}
    return Result(result.output.to(inputs["value"].dtype), grads)


def expect_error(inputs: dict[str, Any], result: Result, about: str) -> None:
    with pytest.raises(AssertionError, match=about):
        assert_result_accurate(OP, inputs, result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_correctly_rounded_results_pass(dtype):
    inputs = classic_inputs(dtype)
    assert_result_accurate(OP, inputs, rerun(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_percent_on_one_corner_of_one_sample_is_caught(dtype):
    inputs = classic_inputs(dtype)
    result = rerun(inputs)
    (height, width), *_ = host_shapes(inputs["spatial_shapes"], [])
    # The first sample that lies wholly inside level 0, and its upper left corner.
    pixels = inputs["sampling_locations"][:, :, :, 0, 0].double() * torch.tensor([width, height]) - 0.5
    inside = ((pixels > 0) & (pixels < torch.tensor([width - 1, height - 1]))).all(-1)
    image, query, head = inside.nonzero()[0].tolist()
    x, y = pixels[image, query, head].floor().int().tolist()
    fraction = pixels[image, query, head] - pixels[image, query, head].floor()
    weight = (1 - fraction).prod() * inputs["attention_weights"][image, query, head, 0, 0]
    extra = 0.01 * weight * inputs["value"][image, y * width + x, head].double()
    channels = slice(head * CASE.channels, (head + 1) * CASE.channels)
    result.output[image, query, channels] += extra.detach().to(dtype)
    expect_error(inputs, result, "output")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shift_of_two_hundredths_of_a_pixel_is_caught(dtype):
    inputs = classic_inputs(dtype)
    sizes = inputs["spatial_shapes"].flip(-1)[:, None]
    shifted = inputs["sampling_locations"].detach() + 0.02 / sizes
    expect_error(inputs, rerun(inputs, sampling_locations=shifted), "output")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_in_16_bit_are_caught(dtype):
    inputs = classic_inputs(dtype)
    rounded = inputs["sampling_locations"].detach().to(dtype)
    expect_error(inputs, rerun(inputs, sampling_locations=rounded), "output")


def missing_row(result: Result) -> str:
    row = result.grads["value"][0, :, 0].abs().sum(-1).argmax()
    result.grads["value"][0, row] = 0
    return "sampled rows have no gradient"


def small_missing_row(result: Result) -> str:
    norms = result.grads["value"][1, :, 2].abs().sum(-1)
    row = torch.where(norms > 0, norms, torch.inf).argmin()
    result.grads["value"][1, row, 2] = 0
    return "sampled rows have no gradient"


def stray_row(result: Result) -> str:
    row = (result.grads["value"][0, :, 1] == 0).all(-1).nonzero()[0]
    result.grads["value"][0, row, 1] = 1e-6
    return "rows that no sample touches are not zero"


def two_swapped_levels(result: Result) -> str:
    grad = result.grads["sampling_locations"]
    grad[:, :, :, [0, 1]] = grad[:, :, :, [1, 0]]
    return "grad_sampling_locations level 0"


def swapped_coordinates(result: Result) -> str:
    result.grads["sampling_locations"] = result.grads["sampling_locations"].flip(-1)
    return "grad_sampling_locations level 0 x"


def one_coarse_sample_zeroed(result: Result) -> str:
    grad = result.grads["attention_weights"][:, :, :, -1]  # a view
    typical = grad[grad != 0].abs().median()
    grad[tuple((grad.abs() == typical).nonzero()[0])] = 0
    return "grad_attention_weights level 2"


def nan_in_the_output(result: Result) -> str:
    result.output[-1, -1, -1] = float("nan")
    return "output: max error nan"


def wrong_shape(result: Result) -> str:
    result.output = result.output[:, :-1]
    return "output: shape"


def zeroed(name: str) -> Callable[[Result], str]:
    def plant(result: Result) -> str:
        result.grads[name].zero_()
        return f"grad_{name}"

    plant.__name__ = f"zeroed_{name}"
    return plant


PLANTED = [missing_row, small_missing_row, stray_row, two_swapped_levels, swapped_coordinates, wrong_shape]
PLANTED += [one_coarse_sample_zeroed, nan_in_the_output]
PLANTED += [zeroed(name) for name in ("value", "sampling_locations", "attention_weights")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_gradient_errors_are_caught(plant, dtype):
    inputs = classic_inputs(dtype)
    result = rerun(inputs)
    expect_error(inputs, result, plant(result))


def test_sums_rounded_to_bfloat16_after_each_addition_are_caught():
    """A kernel with 16-bit atomics would return this for grad_value at a coarse level."""
    case = Case("coarse", 1, 1300, 1, 16, ((2, 3),), (4,))
    inputs = sample_inputs(OP, case, torch.bfloat16)
    result = run(OP, inputs, "reference")
    assert_result_accurate(OP, inputs, result)
    # Each query as an image of its own, so that its share of grad_value comes alone.
    alone = {name: inputs[name].detach().transpose(0, 1) for name in ("sampling_locations", "attention_weights")}
    value = inputs["value"].detach().expand(case.queries, -1, -1, -1).requires_grad_()
    grad_output = random_grad_output(result.output).transpose(0, 1)
    shares = run(OP, {**inputs, **alone, "value": value}, "reference", grad_output).grads["value"]
    total = torch.zeros_like(shares[0])
    for share in shares:
        total += share
    result.grads["value"] = total[None]
    expect_error(inputs, result, "grad_value level 0")


def test_a_wrong_scale_of_the_box_gradient_is_caught():
    case = Case("planted_boxes", 2, 60, 4, 16, ((12, 15), (6, 8)), (4, 4), reference_coordinates=4)
    inputs = sample_inputs("fused_ms_deform_attn", case, torch.float32)
    result = run("fused_ms_deform_attn", inputs, "reference")
    result.grads["reference_points"][..., 3] *= 1.0001
    with pytest.raises(AssertionError, match="grad_reference_points level 1 h"):
        assert_result_accurate("fused_ms_deform_attn", inputs, result)
