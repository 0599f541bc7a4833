"""`torch.library.opcheck` on all four registered ops: schema, fake kernel, autograd registration, AOT dispatch."""

from __future__ import annotations

import pytest
import torch

from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing import Case

CASES = [
    Case("points", 2, 3, 2, 2, ((3, 4), (2, 2)), (2, 2)),
    Case("boxes_mask", 2, 2, 1, 3, ((3, 4), (2, 2)), (2, 2), reference_coordinates=4, mask=True),
    Case("point_list", 1, 3, 2, 2, ((3, 4), (2, 2), (1, 1)), (3, 1, 2), reference_coordinates=4),
    Case("no_queries", 2, 0, 2, 2, ((3, 4), (2, 2)), (2, 2)),
    Case("no_images", 0, 3, 2, 2, ((3, 4), (2, 2)), (2, 2)),
]
# The AOT check takes most of a second; it does not depend on the dtype.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
WANTED = {
    "everything": (True, True),
    "value only": (True, False),
    "all but value": (False, True),
    "nothing": (False, False),
}


def backward_arguments(op, inputs, case, wanted, kernel):
    grad = inputs["value"].new_ones(case.batch, case.queries, case.heads * case.channels)
    value, others = WANTED[wanted]
    gradients = [value] + [others] * (2 if op == "ms_deform_attn" else 3)
    return (grad, *ops()[op].prepare(**inputs), gradients, kernel)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("shapes", ["tensor", "list"])
def test_forward_op(make_inputs, op, kernel, case, shapes):
    inputs = make_inputs(op, case, torch.float32, kernel)
    if shapes == "list":
        inputs |= {"spatial_shapes": list(case.shapes), "level_start_index": None}
    arguments = (*ops()[op].prepare(**inputs), kernel)
    torch.library.opcheck(getattr(torch.ops.dino_kernels, op).default, arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("needs_grad", [True, False], ids=["grad", "no_grad"])
def test_forward_op_of_every_dtype(make_inputs, op, kernel, dtype, case, needs_grad):
    inputs = make_inputs(op, case, dtype, kernel, requires_grad=needs_grad)
    arguments = (*ops()[op].prepare(**inputs), kernel)
    torch.library.opcheck(getattr(torch.ops.dino_kernels, op).default, arguments, test_utils=QUICK)


@pytest.mark.parametrize("wanted", WANTED)
def test_backward_op(make_inputs, op, kernel, wanted):
    inputs = make_inputs(op, CASES[1], torch.float32, kernel, requires_grad=False)
    backward = getattr(torch.ops.dino_kernels, f"{op}_backward").default
    torch.library.opcheck(backward, backward_arguments(op, inputs, CASES[1], wanted, kernel))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("wanted", WANTED)
def test_backward_op_of_every_dtype(make_inputs, op, kernel, dtype, case, wanted):
    inputs = make_inputs(op, case, dtype, kernel, requires_grad=False)
    backward = getattr(torch.ops.dino_kernels, f"{op}_backward").default
    torch.library.opcheck(backward, backward_arguments(op, inputs, case, wanted, kernel), test_utils=QUICK)
