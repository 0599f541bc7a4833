"""`fused_ms_deform_attn`: the tolerance rule, its agreement with the classic op, and what masks and logits pin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import fused_ms_deform_attn, ms_deform_attn
from dino_kernels.testing import CASES, Case, assert_accurate, random_grad_output, run
from tests.comparison import assert_same_bits, assert_same_but_for_the_order_of_sums

OP = "fused_ms_deform_attn"
POINTS = Case("points", 2, 30, 4, 16, ((9, 11), (5, 6)), (4, 4))
BOXES = Case("boxes", 2, 30, 4, 16, ((9, 11), (5, 6)), (4, 2), reference_coordinates=4)
MASKED = Case("masked", 2, 30, 4, 16, ((9, 11), (5, 6)), (4, 4), mask=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_forward_and_backward_are_as_accurate_as_pytorch(make_inputs, kernel, dtype, case):
    assert_accurate(OP, make_inputs(OP, case, dtype, kernel), kernel)


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("coordinates", [2, 4])
def test_accuracy_does_not_hang_on_one_seed(make_inputs, kernel, coordinates, seed):
    case = Case("seeded", 2, 97, 4, 32, ((13, 17), (7, 9), (4, 5)), (4, 4, 4), coordinates, True)
    assert_accurate(OP, make_inputs(OP, case, torch.float32, kernel, seed=seed), kernel)


def locations_and_weights(inputs: dict[str, Any], points: int) -> tuple[Tensor, Tensor]:
    """The formulas of Deformable DETR, written out for inputs [B, Q, M, L, P, ...]."""
    reference, offsets = inputs["reference_points"], inputs["sampling_offsets"]
    if reference.shape[-1] == 2:
        sizes = inputs["spatial_shapes"].flip(-1)
        locations = reference[:, :, None, :, None, :] + offsets / sizes[None, None, None, :, None, :]
    else:
        centre, size = reference[:, :, None, :, None, :2], reference[:, :, None, :, None, 2:]
        locations = centre + offsets / points * size * 0.5
    logits = inputs["attention_logits"]
    return locations, logits.flatten(-2).softmax(-1).view_as(logits)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_fused_equals_the_classic_op_on_written_out_locations_and_weights(make_inputs, backend, coordinates):
    case = Case("composed", 2, 30, 4, 16, ((9, 11), (5, 6)), (4, 4), coordinates, mask=True)
    inputs = make_inputs(OP, case, torch.float64, backend)
    fused = run(OP, inputs, backend)
    locations, weights = locations_and_weights(inputs, 4)
    value = inputs["value"].masked_fill(inputs["value_mask"][:, :, None, None], 0)
    levels = inputs["spatial_shapes"], inputs["level_start_index"]
    classic = ms_deform_attn(value, *levels, locations, weights, backend=backend)
    torch.testing.assert_close(fused.output, classic, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(classic, [inputs[name] for name in fused.grads], random_grad_output(classic))
    for (name, grad), expected in zip(fused.grads.items(), grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["sampling_offsets", "reference_points"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("case", [POINTS, BOXES], ids=lambda case: case.id)
def test_a_position_that_is_not_a_place_has_no_gradient(make_inputs, kernel, name, broken, case):
    inputs = make_inputs(OP, case, torch.float32, kernel)
    tensor = inputs[name].detach().clone()
    tensor[:, ::3, ..., 0] = broken
    result = run(OP, {**inputs, name: tensor.requires_grad_()}, kernel)
    for title, result_tensor in result.named().items():
        assert result_tensor.isfinite().all(), title
    assert (result.grads["sampling_offsets"][:, ::3] == 0).all()
    assert (result.grads["reference_points"][:, ::3] == 0).all()
    assert (result.output[:, ::3] == 0).all()
    assert (result.output[:, 1::3] != 0).any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("coordinate", [2, 3], ids=["width", "height"])
def test_a_box_without_a_size_contributes_nothing(make_inputs, kernel, broken, coordinate):
    inputs = make_inputs(OP, BOXES, torch.float32, kernel)
    boxes = inputs["reference_points"].detach().clone()
    boxes[0, 3, :, coordinate] = broken
    result = run(OP, {**inputs, "reference_points": boxes.requires_grad_()}, kernel)
    assert (result.output[0, 3] == 0).all()
    assert (result.grads["reference_points"][0, 3] == 0).all()
    assert (result.grads["sampling_offsets"][0, 3] == 0).all()


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e4])
def test_padding_may_hold_anything(make_inputs, backend, dtype, padding):
    inputs = make_inputs(OP, MASKED, dtype, backend)
    expected = run(OP, inputs, backend)
    mask = inputs["value_mask"]
    value = inputs["value"].detach().masked_fill(mask[:, :, None, None], padding).requires_grad_()
    result = run(OP, {**inputs, "value": value}, backend)
    assert_same_but_for_the_order_of_sums(OP, inputs, backend, result, expected)
    assert mask.any() and (result.grads["value"][mask] == 0).all()


def test_masking_equals_zeroing_the_rows(make_inputs, backend, dtype):
    inputs = make_inputs(OP, MASKED, dtype, backend)
    zeroed = {**inputs, "value_mask": None}
    zeroed["value"] = inputs["value"].detach().masked_fill(inputs["value_mask"][:, :, None, None], 0).requires_grad_()
    masked, unmasked = run(OP, inputs, backend), run(OP, zeroed, backend)
    torch.testing.assert_close(masked.output, unmasked.output)
    for name in ("reference_points", "sampling_offsets", "attention_logits"):
        torch.testing.assert_close(masked.grads[name], unmasked.grads[name])


def test_an_image_of_padding_only_gives_zeros(make_inputs, backend, dtype):
    inputs = make_inputs(OP, MASKED, dtype, backend)
    inputs["value_mask"] = torch.ones_like(inputs["value_mask"])
    for name, tensor in run(OP, inputs, backend).named().items():
        assert (tensor == 0).all(), name


def test_a_mask_without_padding_changes_nothing(make_inputs, deterministic, kernel):
    inputs = make_inputs(OP, MASKED, torch.float32, kernel)
    empty = {**inputs, "value_mask": torch.zeros_like(inputs["value_mask"])}
    assert_same_bits(run(OP, empty, kernel), run(OP, {**inputs, "value_mask": None}, kernel))


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_logits_do_not_overflow(make_inputs, backend, dtype, scale):
    inputs = make_inputs(OP, POINTS, dtype, backend)
    inputs["attention_logits"] = (inputs["attention_logits"].detach() * scale).requires_grad_()
    assert_accurate(OP, inputs, backend)


def test_logits_of_minus_infinity_have_no_weight(make_inputs, backend, dtype):
    inputs = make_inputs(OP, POINTS, dtype, backend)
    logits = inputs["attention_logits"].detach().clone()
    logits[..., 1, 2:] = float("-inf")
    logits[0, 0, 0, 0] = float("-inf")
    inputs["attention_logits"] = logits.requires_grad_()
    result = run(OP, inputs, backend)
    for name, tensor in result.named().items():
        assert tensor.isfinite().all(), name
    assert (result.grads["attention_logits"][..., 1, 2:] == 0).all()
    assert (result.grads["sampling_offsets"][..., 1, 2:, :] == 0).all()
    assert_accurate(OP, inputs, backend)


def test_a_constant_added_to_the_logits_of_a_head_changes_nothing(make_inputs, kernel):
    inputs = make_inputs(OP, POINTS, torch.float64, kernel)
    shifted = {**inputs, "attention_logits": inputs["attention_logits"] + 300.0}
    torch.testing.assert_close(
        fused_ms_deform_attn(**shifted, backend=kernel), fused_ms_deform_attn(**inputs, backend=kernel)
    )


def test_one_reference_level_serves_all_levels(make_inputs, backend):
    inputs = make_inputs(OP, POINTS, torch.float32, backend)
    shared = inputs["reference_points"].detach()[:, :, :1].clone().requires_grad_()
    spread = shared.detach().expand(-1, -1, 2, -1).clone().requires_grad_()
    one = run(OP, {**inputs, "reference_points": shared}, backend)
    each = run(OP, {**inputs, "reference_points": spread}, backend)
    assert torch.equal(one.output, each.output)
    torch.testing.assert_close(one.grads["reference_points"], each.grads["reference_points"].sum(2, keepdim=True))


@pytest.mark.parametrize("name", ["sampling_offsets", "attention_logits"])
def test_offsets_and_logits_may_be_float32_beside_16_bit_values(make_inputs, kernel, name):
    for dtype in (torch.bfloat16, torch.float16):
        inputs = make_inputs(OP, BOXES, dtype, kernel)
        inputs[name] = inputs[name].detach().float().requires_grad_()
        assert_accurate(OP, inputs, kernel)


def test_16_bit_reference_points_are_used_as_float32(make_inputs, kernel):
    inputs = make_inputs(OP, POINTS, torch.bfloat16, kernel, requires_grad=False)
    inputs["reference_points"] = inputs["reference_points"].bfloat16()
    wide = {**inputs, "reference_points": inputs["reference_points"].float()}
    assert torch.equal(fused_ms_deform_attn(**inputs, backend=kernel), fused_ms_deform_attn(**wide, backend=kernel))


def test_6d_offsets_with_flat_logits_as_the_projection_returns_them(make_inputs, backend):
    inputs = make_inputs(OP, POINTS, torch.float32, backend)
    flat = {**inputs, "attention_logits": inputs["attention_logits"].detach().flatten(3).requires_grad_()}
    grid, mixed = run(OP, inputs, backend), run(OP, flat, backend)
    assert torch.equal(grid.output, mixed.output)
    expected = grid.grads["attention_logits"].flatten(3)
    assert torch.equal(mixed.grads["attention_logits"], expected)
