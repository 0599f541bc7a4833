"""`ms_deform_attn`: the tolerance rule for every backend, dtype and case, and what the definition pins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import ms_deform_attn
from dino_kernels.testing import CASES, Case, assert_accurate, run
from tests.comparison import assert_same_but_for_the_order_of_sums

OP = "ms_deform_attn"
SMALL = Case("small", 2, 30, 4, 16, ((9, 11), (5, 6)), (4, 4))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_forward_and_backward_are_as_accurate_as_pytorch(make_inputs, kernel, dtype, case):
    assert_accurate(OP, make_inputs(OP, case, dtype, kernel), kernel)


@pytest.mark.parametrize("seed", range(1, 6))
def test_accuracy_does_not_hang_on_one_seed(make_inputs, kernel, seed):
    case = Case("seeded", 2, 97, 4, 32, ((13, 17), (7, 9), (4, 5)), (4, 4, 4), layout="local")
    assert_accurate(OP, make_inputs(OP, case, torch.float32, kernel, seed=seed), kernel)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 1e10, 17.0])
@pytest.mark.parametrize("coordinate", [0, 1], ids=["x", "y"])
def test_a_location_that_is_not_a_place_contributes_nothing(make_inputs, backend, broken, coordinate):
    inputs = make_inputs(OP, SMALL, torch.float32, backend)
    chosen = torch.zeros(inputs["attention_weights"].shape, dtype=torch.bool)
    chosen[:, ::3, 1::2, :, 2] = True
    chosen[1, 5] = True
    chosen = chosen.to(inputs["value"].device)
    without = {**inputs, "attention_weights": inputs["attention_weights"].detach().masked_fill(chosen, 0)}
    without["attention_weights"].requires_grad_()
    locations = inputs["sampling_locations"].detach().clone()
    locations[..., coordinate][chosen] = broken
    result = run(OP, {**inputs, "sampling_locations": locations.requires_grad_()}, backend)
    expected = run(OP, without, backend)
    torch.testing.assert_close(result.output, expected.output, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.grads["value"], expected.grads["value"], rtol=0, atol=1e-5)
    assert (result.grads["sampling_locations"][chosen] == 0).all()
    assert (result.grads["attention_weights"][chosen] == 0).all()
    kept = ~chosen
    torch.testing.assert_close(
        result.grads["sampling_locations"][kept], expected.grads["sampling_locations"][kept], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("where", [-1.0, -0.6, 1.6, 2.0, 1e6, float("nan"), float("inf")])
def test_samples_outside_every_level_give_exact_zeros(make_inputs, backend, dtype, where):
    inputs = make_inputs(OP, SMALL, dtype, backend)
    inputs["sampling_locations"] = torch.full_like(inputs["sampling_locations"], where).requires_grad_()
    result = run(OP, inputs, backend)
    for name, tensor in result.named().items():
        assert (tensor == 0).all(), name


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["uniform", "hostile"])
def test_rows_that_no_sample_touches_may_hold_anything(make_inputs, backend, dtype, poison, layout):
    case = Case("sparse", 2, 5, 3, 8, ((9, 11), (4, 6), (1, 1)), (3, 3, 3), layout=layout)
    inputs = make_inputs(OP, case, dtype, backend)
    clean = run(OP, inputs, backend)
    untouched = (clean.grads["value"] == 0).all(-1, keepdim=True)
    assert untouched.any()
    poisoned = inputs["value"].detach().masked_fill(untouched, poison).requires_grad_()
    result = run(OP, {**inputs, "value": poisoned}, backend)
    assert_same_but_for_the_order_of_sums(OP, inputs, backend, result, clean)


def ramp(height: int, width: int) -> Tensor:
    """A map with value 10 x + y at (x, y) in channel 0, and a constant 1 in channel 1: [1, H * W, 1, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([10.0 * x + y, torch.ones(height, width)], -1).view(1, -1, 1, 2)


def sample_ramp(backend: str, inputs: dict[str, Any], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Output [n, 2] and location gradient [n, 2], in units a pixel, of the ramp at `pixels` [n, 2]; 8 x 4."""
    device = inputs["value"].device
    size = torch.tensor([8.0, 4.0])
    locations = ((pixels + 0.5) / size).view(1, -1, 1, 1, 1, 2).to(device).requires_grad_()
    weights = torch.ones(1, len(pixels), 1, 1, 1, device=device)
    output = ms_deform_attn(ramp(4, 8).to(device), [(4, 8)], None, locations, weights, backend=backend)
    (grad,) = torch.autograd.grad(output[..., 0].sum(), locations)
    return output[0].detach().cpu(), grad.view(-1, 2).cpu() / size


def test_pixel_centres_return_their_value_and_its_forward_difference(make_inputs, backend):
    inputs = make_inputs(OP, SMALL, torch.float32, backend)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    output, grad = sample_ramp(backend, inputs, torch.stack([x, y], -1).view(-1, 2))
    value = 10 * x + y
    assert torch.equal(output[:, 0].view(4, 8), value)
    right = torch.cat([value, torch.zeros(4, 1)], 1)  # zero padding beyond the border
    below = torch.cat([value, torch.zeros(1, 8)], 0)
    assert torch.equal(grad[:, 0].view(4, 8), right[:, 1:] - value)
    assert torch.equal(grad[:, 1].view(4, 8), below[1:] - value)


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [(-0.5, 1, 0.5), (-0.75, -0.75, 0.0625), (7.5, 1, 0.5), (7.5, 3.5, 0.25), (7.75, 3.75, 0.0625), (3, -0.125, 0.875)]
    + [(-1, 1, 0), (8, 1, 0), (3, -1, 0), (3, 4, 0), (-1.25, 1, 0), (8.25, 1, 0), (-1, -1, 0), (8, 4, 0), (8, -1, 0)],
)
def test_borders_are_padded_with_zeros(make_inputs, backend, x, y, inside):
    output, _ = sample_ramp(backend, make_inputs(OP, SMALL, torch.float32, backend), torch.tensor([[x, y]]).float())
    assert output[0, 1].item() == inside


def test_output_is_linear_in_value_and_in_weights(make_inputs, kernel):
    inputs = make_inputs(OP, SMALL, torch.float64, kernel)
    output = run(OP, inputs, kernel).output
    for name in ("value", "attention_weights"):
        scaled = {**inputs, name: inputs[name].detach() * 3}
        torch.testing.assert_close(ms_deform_attn(**scaled, backend=kernel), 3 * output)


def test_weights_need_not_be_a_softmax(make_inputs, kernel):
    inputs = make_inputs(OP, SMALL, torch.float32, kernel)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(inputs["attention_weights"].shape, generator=generator) * 5
    inputs["attention_weights"] = weights.to(inputs["value"].device).requires_grad_()
    assert_accurate(OP, inputs, kernel)


def test_weights_may_be_float32_beside_16_bit_values(make_inputs, kernel):
    for dtype in (torch.bfloat16, torch.float16):
        inputs = make_inputs(OP, SMALL, dtype, kernel)
        inputs["attention_weights"] = inputs["attention_weights"].detach().float().requires_grad_()
        assert_accurate(OP, inputs, kernel)


def test_16_bit_locations_are_used_as_float32(make_inputs, kernel):
    inputs = make_inputs(OP, SMALL, torch.bfloat16, kernel, requires_grad=False)
    inputs["sampling_locations"] = inputs["sampling_locations"].bfloat16()
    wide = {**inputs, "sampling_locations": inputs["sampling_locations"].float()}
    assert torch.equal(ms_deform_attn(**inputs, backend=kernel), ms_deform_attn(**wide, backend=kernel))


def test_6d_and_flat_sample_layouts_agree(make_inputs, deterministic, backend):
    inputs = make_inputs(OP, SMALL, torch.float32, backend)
    flat = {**inputs, "num_points": [4, 4]}
    for name in ("sampling_locations", "attention_weights"):
        flat[name] = inputs[name].detach().flatten(3, 4).requires_grad_()
    grid, flattened = run(OP, inputs, backend), run(OP, flat, backend)
    assert torch.equal(grid.output, flattened.output)
    for name in grid.grads:
        assert torch.equal(grid.grads[name].view_as(flattened.grads[name]), flattened.grads[name]), name
