"""Tables of levels: every accepted form means the same, and one that points outside S is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dino_kernels
from dino_kernels.testing import Case, assert_accurate, run
from tests.comparison import assert_same_bits, assert_same_sums, magnitudes_of_sums

SHAPES = ((9, 11), (5, 6), (2, 3))
CASE = Case("tables", 2, 23, 4, 16, SHAPES, (4, 4, 4))
OUT_OF_RANGE = "spatial_shapes|level_start_index"


def forms(device: torch.device) -> dict[str, object]:
    return {
        "int64": torch.tensor(SHAPES, device=device),
        "int32": torch.tensor(SHAPES, dtype=torch.int32, device=device),
        "list of tuples": list(SHAPES),
        "list of lists": [list(shape) for shape in SHAPES],
        "tuple": SHAPES,
        "torch.Size": [torch.Size(shape) for shape in SHAPES],
    }


@pytest.mark.parametrize("start", ["None", "int64", "int32"])
@pytest.mark.parametrize("form", forms(torch.device("cpu")))
def test_every_form_of_the_table_gives_the_same_result(make_inputs, deterministic, op, backend, form, start):
    inputs = make_inputs(op, CASE, torch.float32, backend)
    expected = run(op, inputs, backend)
    starts = inputs["level_start_index"]
    changed = {
        **inputs,
        "spatial_shapes": forms(inputs["value"].device)[form],
        "level_start_index": None if start == "None" else starts.to(getattr(torch, start)),
    }
    assert_same_bits(run(op, changed, backend), expected)


def with_rows(inputs, rows, starts):
    """`inputs` with S = rows, the old levels copied to `starts` and NaN in between."""
    old = inputs["value"].detach()
    value = torch.full((old.shape[0], rows, *old.shape[2:]), float("nan"), dtype=old.dtype, device=old.device)
    position = 0
    for (height, width), start in zip(SHAPES, starts, strict=True):
        value[:, start : start + height * width] = old[:, position : position + height * width]
        position += height * width
    return {
        **inputs,
        "value": value.requires_grad_(),
        "level_start_index": torch.tensor(starts, device=old.device),
    }


@pytest.mark.parametrize("starts", [(7, 110, 160), (40, 0, 150), (0, 99, 129), (70, 40, 0)], ids=str)
def test_levels_may_start_anywhere_and_rows_between_them_are_not_read(make_inputs, op, backend, starts):
    inputs = make_inputs(op, CASE, torch.float32, backend)
    expected = run(op, inputs, backend)
    moved = with_rows(inputs, 200, starts)
    result = run(op, moved, backend)
    for name, tensor in result.named().items():
        assert name == "grad_value" or torch.equal(tensor, expected.named()[name]), name
    magnitudes = magnitudes_of_sums(op, inputs, backend)
    position, used = 0, torch.zeros(200, dtype=torch.bool)
    for (height, width), start in zip(SHAPES, starts, strict=True):
        rows = height * width
        old = slice(position, position + rows)
        got = result.grads["value"][:, start : start + rows]
        assert_same_sums(got, expected.grads["value"][:, old], magnitudes[:, old], backend)
        position += rows
        used[start : start + rows] = True
    assert (result.grads["value"][:, ~used] == 0).all()


@pytest.mark.parametrize("points", [(1, 1, 0), (2, 1, 1), (4, 2, 2), (5, 4, 3)], ids=str)
def test_rows_that_no_level_has_do_not_change_a_bit_on_a_cpu(make_inputs, op, points):
    """With many rows the gradient of the value is gathered, with few it is scattered."""
    inputs = make_inputs(op, replace(CASE, points=points), torch.float32, "cpu")
    few, many = run(op, inputs, "cpu"), run(op, with_rows(inputs, 2000, (0, 99, 129)), "cpu")
    assert torch.equal(many.grads["value"][:, :135], few.grads["value"])


@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 50, 95), (30, 30, 30)], ids=str)
def test_levels_may_share_rows_and_their_gradients_add_up(make_inputs, op, kernel, starts):
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    inputs["level_start_index"] = torch.tensor(starts, device=inputs["value"].device)
    result, expected = run(op, inputs, kernel), run(op, inputs, "reference")
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "starts",
    [(0, 99, 130), (0, 99, -1), (-1, 99, 129), (37, 99, 129), (0, 10**6, 129), (0, 2**62, 129), (0, -(2**62), 129)],
    ids=str,
)
def test_a_start_outside_value_is_refused(make_inputs, op, kernel, starts):
    if kernel != "cpu":
        pytest.skip("only the CPU may look at the table: elsewhere that waits for the device")
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    inputs["level_start_index"] = torch.tensor(starts)
    with pytest.raises((ValueError, RuntimeError), match=OUT_OF_RANGE):
        getattr(dino_kernels, op)(**inputs, backend=kernel)


@pytest.mark.parametrize(
    "shapes",
    [
        [(9, 16), (5, 6), (2, 3)],
        [(90, 110), (5, 6), (2, 3)],
        [(-9, 11), (5, 6), (2, 3)],
        [(-9, -11), (5, 6), (2, 3)],
        [(2**31, 2**33), (5, 6), (2, 3)],
        [(2**32, 2**32), (5, 6), (2, 3)],
        [(1, 2**33), (5, 6), (2, 3)],
        [(9, 11), (5, 6), (2, 4)],
    ],
    ids=str,
)
@pytest.mark.parametrize("with_starts", [True, False], ids=["starts", "no_starts"])
def test_a_shape_larger_than_value_is_refused(make_inputs, op, kernel, shapes, with_starts):
    if kernel != "cpu":
        pytest.skip("only the CPU may look at the table: elsewhere that waits for the device")
    inputs = make_inputs(op, CASE, torch.float32, kernel)
    inputs["spatial_shapes"] = torch.tensor(shapes)
    if not with_starts:
        inputs["level_start_index"] = None
    with pytest.raises((ValueError, RuntimeError), match=OUT_OF_RANGE):
        getattr(dino_kernels, op)(**inputs, backend=kernel)


def test_backward_checks_the_table_itself(make_inputs, op, kernel):
    """The backward op can be called on its own, and a table may change between forward and backward."""
    if kernel != "cpu":
        pytest.skip("only the CPU may look at the table: elsewhere that waits for the device")
    from dino_kernels.ops._core.dispatch import ops

    inputs = make_inputs(op, CASE, torch.float32, kernel, requires_grad=False)
    inputs["level_start_index"] = torch.tensor([0, 99, 10**9])
    arguments = ops()[op].prepare(**inputs)
    grad = torch.ones(CASE.batch, CASE.queries, CASE.heads * CASE.channels)
    backward = getattr(torch.ops.dino_kernels, f"{op}_backward")
    requested = [True] * (3 if op == "ms_deform_attn" else 4)
    with pytest.raises((ValueError, RuntimeError), match=OUT_OF_RANGE):
        backward(grad, *arguments, requested, kernel)


def test_a_level_without_points_may_have_any_place_in_the_list(make_inputs, op, kernel):
    for points in ((0, 4, 4), (4, 0, 4), (4, 4, 0), (0, 0, 1)):
        case = Case("gaps", 2, 11, 2, 8, SHAPES, points)
        inputs = make_inputs(op, case, torch.float32, kernel)
        assert_accurate(op, inputs, kernel)


def test_many_levels(make_inputs, op, kernel):
    case = Case("many_levels", 1, 13, 2, 8, tuple((1 + level % 4, 2 + level % 3) for level in range(24)), (2,) * 24)
    assert_accurate(op, make_inputs(op, case, torch.float32, kernel), kernel)
