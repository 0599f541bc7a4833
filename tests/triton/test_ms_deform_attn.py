"""Triton's kernels of deformable attention in its interpreter: every branch of them, on cases of a few programs.

On a GPU they run all tests that have a kernel as parameter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops._core.fixed_point import scale_of
from dino_kernels.ops.ms_deform_attn import triton as backend
from dino_kernels.testing import DTYPES, Case, Result, assert_accurate, assert_result_accurate, run
from tests.comparison import assert_same_bits
from tests.selection import INTERPRETED

pytest.importorskip("triton", reason=triton_support.MISSING)

# On a grid strips of 8 rows. Where 4 channels are a row, a program of the smallest configuration has 16 queries.
GRID = Case("grid", 1, 38, 1, 4, ((9, 4), (1, 2)), (1, 1), layout="local")
BOXES = Case("boxes", 2, 3, 2, 6, ((3, 4), (2, 2)), (2, 2), reference_coordinates=4, mask=True)
ODD_CHANNELS = Case("odd_channels", 1, 9, 2, 3, ((3, 4), (2, 2), (1, 1)), (1, 0, 2))
ONE_CHANNEL = Case("one_channel", 1, 2, 2, 1, ((5, 1),), (3,), reference_coordinates=4)
ONE_PIXEL = Case("one_pixel", 2, 2, 1, 4, ((1, 1),), (2,))
HOSTILE = Case("hostile", 1, 16, 1, 4, ((4, 5), (2, 3)), (2, 1), layout="hostile")
HOSTILE_BOXES = Case("hostile_boxes", 1, 16, 1, 4, ((4, 8), (2, 4)), (2, 1), 4, layout="hostile")
LEVELS = Case("levels", 1, 4, 1, 8, ((5, 4), (3, 2), (2, 2), (2, 1), (1, 1)), (1, 1, 1, 1, 1), mask=True)
# 4 lanes a row: rounds of 4, 2, and 4 and 3 samples.
ROUNDS = Case("rounds", 1, 13, 1, 32, ((3, 4), (2, 2), (5, 3)), (4, 2, 7), reference_coordinates=4, mask=True)
WIDE = Case("wide", 1, 3, 1, 72, ((3, 4), (2, 2)), (3, 1))
CASES = [ROUNDS, WIDE, GRID, BOXES, ODD_CHANNELS, ONE_CHANNEL, ONE_PIXEL, HOSTILE, HOSTILE_BOXES, LEVELS]
SMALL = Case("small", 1, 2, 1, 4, ((3, 4), (2, 2)), (1, 1))


@pytest.fixture
def kernel() -> str:
    return INTERPRETED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_forward_and_backward_are_as_accurate_as_pytorch(make_inputs, kernel, op, case):
    assert_accurate(op, make_inputs(op, case, torch.float32, kernel), kernel)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("case", [BOXES, ODD_CHANNELS], ids=lambda case: case.id)
def test_every_dtype_is_as_accurate_as_pytorch(make_inputs, kernel, op, name, case):
    assert_accurate(op, make_inputs(op, case, DTYPES[name], kernel), kernel)


@pytest.mark.parametrize("kernel", [INTERPRETED, "triton"])
@pytest.mark.parametrize("queries", [4, 8, 32, 64])
def test_every_configuration_is_as_accurate_as_pytorch(make_inputs, monkeypatch, kernel, queries):
    inputs = make_inputs("fused_ms_deform_attn", ROUNDS, torch.float32, kernel)
    kernels = ops()["ms_deform_attn"].modules[kernel].kernels()
    from dino_kernels.ops.ms_deform_attn import triton_tuned as tuned

    configs = {config.kwargs["BLOCK_Q"]: config for config in (*tuned.FEW, *tuned.MANY)}
    assert len(configs) == 4
    for name in ("forward_few", "forward_many", "backward_few", "backward_many"):
        monkeypatch.setattr(getattr(kernels, name), "configs", [configs[queries]])
    assert_accurate("fused_ms_deform_attn", inputs, kernel)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_a_program_never_has_fewer_than_one_query(lanes):
    """As many lanes a query as load a row, so that a program's warps are full."""
    assert backend.tile_size(32, lanes) * lanes == 128
    assert backend.tile_size(4, lanes) == max(16 // lanes, 1)


@pytest.mark.parametrize("cuda", ["emulated", "cuda"])
@pytest.mark.parametrize("case", [GRID, BOXES, HOSTILE], ids=lambda case: case.id)
def test_agrees_with_the_cuda_kernels(make_inputs, op, cuda, case):
    triton = {"emulated": INTERPRETED, "cuda": "triton"}[cuda]
    inputs = make_inputs(op, case, torch.float32, triton)
    make_inputs(op, case, torch.float32, cuda)  # or skips the test
    result, expected = run(op, inputs, triton).named(), run(op, inputs, cuda).named()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5 * expected[name].abs().max().item())


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_deterministic_sums_are_as_accurate_as_pytorch(make_inputs, deterministic, kernel, op, name):
    assert_accurate(op, make_inputs(op, BOXES, DTYPES[name], kernel), kernel)


def test_a_deterministic_backward_in_float64_is_refused(deterministic):
    assert "float32" in (backend.unsupported_number(torch.zeros(1, dtype=torch.float64)) or "")
    assert backend.unsupported_number(torch.zeros(1)) is None


def test_sums_in_fixed_point_use_their_bits_and_never_overflow():
    for bound in (1e-30, 0.75, 1.0, 3e38):
        for terms in (1, 16, 355_568):
            scale = scale_of(torch.tensor([bound]), terms).item()
            assert bound * terms * scale < 2**62
            assert bound * terms * scale > 2**58 or scale == 2**126
    assert scale_of(torch.tensor([0.0]), 4).isfinite()
    assert scale_of(torch.tensor([float("inf")]), 4).isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_sums_never_hide_a_number_that_is_not_finite(make_inputs, deterministic, kernel, op, bad):
    inputs = make_inputs(op, SMALL, torch.float32, kernel)
    grad = torch.ones(1, 2, 4)
    grad[0, 1, 2] = bad
    assert not run(op, inputs, kernel, grad).grads["value"].isfinite().all()


def detached(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: each.detach() if isinstance(each, Tensor) else each for name, each in inputs.items()}


@pytest.mark.parametrize("requested", [(0,), (1,), (-1,), ()], ids=str)
def test_any_subset_of_gradients_is_the_same(make_inputs, kernel, op, requested):
    inputs = make_inputs(op, SMALL, torch.bfloat16, kernel)
    everything = run(op, inputs, kernel)
    names = [list(everything.grads)[i] for i in requested]
    some = detached(inputs)
    for name in names:
        some[name].requires_grad_()
    result = run(op, some, kernel)
    assert_same_bits(result, Result(everything.output, {name: everything.grads[name] for name in names}))


@pytest.mark.parametrize("form", ["list", "int32", "no starts"])
def test_every_form_of_the_table_gives_the_same_result(make_inputs, kernel, op, form):
    inputs = make_inputs(op, GRID, torch.float32, kernel, requires_grad=False)
    expected = run(op, inputs, kernel)
    shapes, starts = inputs["spatial_shapes"], inputs["level_start_index"]
    forms = {"list": (list(GRID.shapes), None), "int32": (shapes.int(), starts.int()), "no starts": (shapes, None)}
    changed = dict(zip(("spatial_shapes", "level_start_index"), forms[form], strict=True))
    assert_same_bits(run(op, inputs | changed, kernel), expected)


def test_levels_with_rows_between_them(make_inputs, kernel, op):
    inputs = make_inputs(op, SMALL, torch.float32, kernel)
    expected = run(op, inputs, kernel)
    value = torch.full((1, 21, 1, 4), float("nan"))
    value[:, 2:14], value[:, 16:20] = inputs["value"].detach().split([12, 4], 1)
    moved = inputs | {"value": value.requires_grad_(), "level_start_index": torch.tensor([2, 16])}
    result = run(op, moved, kernel)
    assert torch.equal(result.output, expected.output)
    assert torch.equal(result.grads["value"][:, 2:14], expected.grads["value"][:, :12])
    assert (result.grads["value"][:, :2] == 0).all() and (result.grads["value"][:, 20:] == 0).all()


@pytest.mark.parametrize(
    ("shapes", "starts"),
    [
        (((3, 4), (2, 3)), (0, 12)),
        (((3, 4), (2, 2)), (0, 13)),
        (((-3, -4), (2, 2)), (0, 12)),
        (((3, 3), (2, 2)), None),
        (((3, 4), (2, 2)), (-1, 12)),
    ],
    ids=["too large", "starts too late", "negative", "too few rows", "starts too early"],
)
def test_a_table_that_does_not_fit_reads_nothing_and_gives_nan(make_inputs, kernel, op, shapes, starts):
    inputs = make_inputs(op, SMALL, torch.float32, kernel)
    # Past the public function, which checks tables on a CPU.
    arguments: Any = ops()[op].prepare(**detached(inputs))
    arguments = arguments._replace(
        spatial_shapes=torch.tensor(shapes),
        level_sizes=[],
        level_start_index=None if starts is None else torch.tensor(starts),
    )
    module = ops()[op].modules[kernel]
    output = module.forward(arguments)
    assert output.isnan().all()
    gradients = 3 if op == "ms_deform_attn" else 4
    grad_value = module.backward(torch.ones_like(output), arguments, [True] * gradients)[0]
    assert (grad_value == 0).all()


def misaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage[1:].view(tensor.shape).copy_(tensor.detach()).requires_grad_()


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_addresses_at_which_nothing_can_be_loaded_in_pairs(make_inputs, kernel, op, name):
    inputs = make_inputs(op, BOXES, DTYPES[name], kernel)
    moved = {
        key: misaligned(each) if isinstance(each, Tensor) and each.is_floating_point() else each
        for key, each in inputs.items()
    }
    assert_result_accurate(op, inputs, run(op, moved, kernel), kernel)


def test_pairs_need_even_addresses_and_strides():
    """The interpreter, on a CPU, would read a pair at any address."""
    dense = torch.zeros(2, 3, 2, 6, dtype=torch.bfloat16)
    odd_rows = torch.zeros(2, 3, 13, dtype=torch.bfloat16)[..., :12].unflatten(2, (2, 6))
    assert backend._packed(dense)
    assert not any(backend._packed(each) for each in (misaligned(dense), odd_rows, dense[..., :5], dense.float()))
    assert backend._even(dense, 4)
    assert not backend._even(odd_rows, 4)


def test_reads_only_what_it_samples(make_inputs, kernel, op):
    inputs = make_inputs(op, BOXES, torch.float32, kernel)
    clean = run(op, inputs, kernel)
    sampled = (clean.grads["value"] != 0).any(-1, keepdim=True)
    assert not sampled.all()
    poisoned = inputs["value"].detach().masked_fill(~sampled, float("nan")).requires_grad_()
    assert_same_bits(run(op, inputs | {"value": poisoned}, kernel), clean)


def test_the_weight_of_a_sample_outside_does_not_matter(make_inputs, kernel):
    inputs = make_inputs("ms_deform_attn", SMALL, torch.float32, kernel)
    expected = run("ms_deform_attn", inputs, kernel)
    outside = inputs["sampling_locations"].detach().clone()
    outside[:, 0] = 5
    weights = inputs["attention_weights"].detach().clone()
    weights[:, 0] = float("nan")
    changed = {"sampling_locations": outside.requires_grad_(), "attention_weights": weights.requires_grad_()}
    result = run("ms_deform_attn", inputs | changed, kernel)
    assert (result.output[:, 0] == 0).all()
    assert torch.equal(result.output[:, 1], expected.output[:, 1])
    assert result.grads["value"].isfinite().all()
