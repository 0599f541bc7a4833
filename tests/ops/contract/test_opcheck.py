"""`torch.library.opcheck` on all registered ops: schema, fake kernel, autograd registration, AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from dino_kernels.testing import DTYPES, AssignmentCase, assignment_costs
from tests.ops.contract.calls import ATTENTION, OPS, call, named, options_of, prepared, registered
from tests.ops.contract.conftest import Subject

pytestmark = pytest.mark.compiler

# The AOT check takes most of a second, and depends neither on the dtype nor on sizes.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
FULL = (*QUICK, "test_aot_dispatch_dynamic")
SMALL: dict[str, Any] = {"queries": 3, "heads": 2, "channels": 2, "levels": ((3, 4), (2, 2)), "points": 2}


def small_inputs(subject: Subject, dtype: str = "fp32", **sizes: Any) -> dict[str, Any]:
    return subject.inputs(dtype, **{**(SMALL if subject.op in ATTENTION else {}), **sizes})


@pytest.mark.parametrize("form", ["usual", "other"])
def test_every_op(subject, form):
    """Form "other": levels as a list, or no more results than without `full_output`."""
    inputs = small_inputs(subject)
    options = options_of(subject.op)
    if form == "other" and subject.op in ATTENTION:
        inputs |= {"spatial_shapes": list(SMALL["levels"]), "level_start_index": None}
    elif form == "other":
        options = {}
    torch.library.opcheck(registered(subject.op), prepared(subject.op, inputs, subject.backend, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_in_every_dtype_and_of_nothing(subject, dtype):
    for sizes in ({}, *OPS[subject.op].empty):
        inputs = small_inputs(subject, dtype, **sizes)
        for options in ({}, options_of(subject.op)):
            arguments = prepared(subject.op, inputs, subject.backend, **options)
            torch.library.opcheck(registered(subject.op), arguments, test_utils=QUICK)


def requested(op: str, value: bool, others: bool) -> list[bool]:
    return [value] + [others] * (2 if op == "ms_deform_attn" else 3)


@pytest.mark.parametrize("value", [True, False], ids=["value", "not value"])
@pytest.mark.parametrize("others", [True, False], ids=["others", "not others"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("any_op", ATTENTION)
def test_every_backward_op(subject, dtype, value, others):
    backward = registered(f"{subject.op}_backward")
    for sizes in ({}, *OPS[subject.op].empty[:2]):
        inputs = small_inputs(subject, dtype, **sizes)
        detached = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()}
        output = call(subject.op, detached, subject.backend)
        *arguments, backend = prepared(subject.op, detached, subject.backend)
        gradients = requested(subject.op, value, others)
        checks = FULL if dtype == "fp32" and value and others and not sizes else QUICK
        torch.library.opcheck(backward, (torch.ones_like(output), *arguments, gradients, backend), test_utils=checks)


@pytest.mark.parametrize("any_op", ["matching_cost", "hungarian_match"])
def test_lists_of_predictions(subject):
    inputs = subject.inputs()
    queries = inputs["logits"].shape[2] - 1
    inputs |= {name: [inputs[name], inputs[name][:, :, :queries]] for name in ("logits", "boxes")}
    inputs["extra_cost"] = inputs["extra_cost"][:1]
    torch.library.opcheck(registered(subject.op), prepared(subject.op, inputs, subject.backend), test_utils=QUICK)


@pytest.mark.parametrize("sizes", [False, True], ids=["whole", "sizes"])
@pytest.mark.parametrize("any_op", ["linear_sum_assignment"])
def test_dense_and_packed_batches(subject, sizes):
    subject.inputs()
    cost = assignment_costs(AssignmentCase("dense", 2, 5, 3, kind="integers"))
    given: dict[str, Any] = {"sizes": [[5, 3]] * 2} if sizes else {"offsets": torch.tensor([0, 2, 5])}
    moved = {"cost": cost, **given}
    if subject.backend in ("cuda", "triton"):
        moved = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in moved.items()}
    torch.library.opcheck(registered(subject.op), prepared(subject.op, moved, subject.backend), test_utils=QUICK)


def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(subject):
    for sizes in ({}, *OPS[subject.op].empty):
        inputs = subject.inputs(**sizes)
        real = named(subject.op, call(subject.op, inputs, subject.backend))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = named(subject.op, call(subject.op, faked(mode, inputs), subject.backend))
        described = [
            {name: (x.shape, x.dtype, x.device, x.stride()) for name, x in results.items()} for results in (fake, real)
        ]
        assert described[0] == described[1]


def faked(mode: FakeTensorMode, inputs: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import fields, is_dataclass, replace

    def fake(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return mode.from_tensor(argument)
        if is_dataclass(argument) and not isinstance(argument, type):
            return replace(argument, **{field.name: fake(getattr(argument, field.name)) for field in fields(argument)})
        return argument

    return {name: fake(argument) for name, argument in inputs.items()}
