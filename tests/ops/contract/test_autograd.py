"""Gradients against finite differences, for any subset of inputs; second derivatives; results without a gradient."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor

import dino_kernels
from dino_kernels.testing import Case, run
from tests.ops.contract.calls import ATTENTION, OPS, assert_same, perform

INPUTS = {
    "ms_deform_attn": ("value", "sampling_locations", "attention_weights"),
    "fused_ms_deform_attn": ("value", "reference_points", "sampling_offsets", "attention_logits"),
}
TINY = [
    Case("points", 2, 2, 2, 2, ((2, 3), (1, 2)), (2, 2)),
    Case("boxes", 1, 2, 2, 3, ((2, 3), (1, 2)), (2, 2), reference_coordinates=4),
    Case("mask", 2, 2, 2, 2, ((2, 3), (1, 2)), (2, 2), mask=True),
    Case("boxes_mask", 2, 2, 1, 3, ((2, 3), (1, 2)), (2, 2), reference_coordinates=4, mask=True),
    Case("point_list", 1, 2, 2, 2, ((2, 3), (1, 2), (1, 1)), (3, 1, 2), reference_coordinates=4),
    Case("one_pixel", 2, 3, 1, 2, ((1, 1), (1, 3)), (2, 2)),
    Case("wide_heads", 1, 2, 1, 33, ((2, 3),), (3,)),
    Case("outside", 1, 5, 2, 2, ((4, 2), (1, 2)), (2, 2), layout="hostile"),
]


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)
def test_gradients_equal_finite_differences(make_inputs, op, backend, case):
    if backend == "reference" and case.layout == "hostile":
        pytest.skip("reference: its gradient at an infinite offset may be NaN")
    inputs = make_inputs(op, case, torch.float64, backend)

    def function(*differentiated: Tensor) -> Tensor:
        named = dict(zip(INPUTS[op], differentiated, strict=True))
        return getattr(dino_kernels, op)(**{**inputs, **named}, backend=backend)

    arguments = [inputs[name] for name in INPUTS[op]]
    if case.layout == "hostile":  # finite differences of NaN are NaN
        for name, argument in zip(INPUTS[op], arguments, strict=True):
            argument.detach().nan_to_num_(nan=60.0, posinf=70.0, neginf=-70.0).clamp_(-70, 70)
            assert inputs[name].isfinite().all()
    assert torch.autograd.gradcheck(function, arguments, eps=1e-6, atol=1e-6, rtol=1e-5)


SUBSETS = {
    op: [subset for size in range(1, len(names)) for subset in combinations(names, size)]
    for op, names in INPUTS.items()
}


@pytest.mark.parametrize(
    ("op", "subset"),
    list(chain.from_iterable([(op, subset) for subset in subsets] for op, subsets in SUBSETS.items())),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_any_subset_of_inputs_may_require_a_gradient(make_inputs, deterministic, kernel, op, subset):
    case = Case("subset", 2, 23, 4, 16, ((9, 11), (5, 6)), (4, 4), 4, mask=True)
    inputs = make_inputs(op, case, torch.float32, kernel)
    everything = run(op, inputs, kernel)
    for name in INPUTS[op]:
        inputs[name] = inputs[name].detach().requires_grad_(name in subset)
    some = run(op, inputs, kernel)
    assert torch.equal(some.output, everything.output)
    assert set(some.grads) == set(subset)
    for name, grad in some.grads.items():
        assert torch.equal(grad, everything.grads[name]), name


def test_the_output_needs_a_gradient_exactly_where_an_input_does(make_inputs, op, backend):
    inputs = make_inputs(op, TINY[0], torch.float32, backend)
    function = getattr(dino_kernels, op)
    assert function(**inputs, backend=backend).requires_grad
    with torch.no_grad():
        assert not function(**inputs, backend=backend).requires_grad
    with torch.inference_mode():
        assert function(**inputs, backend=backend).is_inference()
    detached = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    assert not function(**detached, backend=backend).requires_grad


def test_gradients_accumulate_over_two_calls(make_inputs, op, kernel):
    inputs = make_inputs(op, TINY[1], torch.float64, kernel)
    once = run(op, inputs, kernel, torch.ones(1, 2, 6, dtype=torch.float64, device=inputs["value"].device))
    for _ in range(2):
        getattr(dino_kernels, op)(**inputs, backend=kernel).sum().backward()
    for name, grad in once.grads.items():
        torch.testing.assert_close(inputs[name].grad, 2 * grad)


def test_saved_inputs_changed_in_place_are_refused(make_inputs, op, kernel):
    inputs = make_inputs(op, TINY[0], torch.float32, kernel)
    for name in INPUTS[op]:
        call = {**inputs, name: inputs[name] * 1}
        output = getattr(dino_kernels, op)(**call, backend=kernel)
        call[name].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_double_backward_is_refused_by_name(make_inputs, op, kernel):
    inputs = make_inputs(op, TINY[0], torch.float32, kernel)
    output = getattr(dino_kernels, op)(**inputs, backend=kernel)
    (grad,) = torch.autograd.grad(output.square().sum(), inputs["value"], create_graph=True)
    message = rf"^{op}: double backward is not implemented by the kernels\. Use backend='reference'"
    with pytest.raises(RuntimeError, match=message):
        grad.square().sum().backward()


@pytest.mark.parametrize("case", TINY[:5], ids=lambda case: case.id)
def test_the_reference_has_second_derivatives(make_inputs, op, case):
    inputs = make_inputs(op, case, torch.float64, "reference")
    names = ("value", INPUTS[op][-1])

    def function(*differentiated: Tensor) -> Tensor:
        named = dict(zip(names, differentiated, strict=True))
        return getattr(dino_kernels, op)(**{**inputs, **named}, backend="reference")

    assert torch.autograd.gradgradcheck(function, [inputs[name] for name in names], atol=1e-6)


def test_only_the_inputs_are_saved_for_backward(make_inputs, kernel):
    op = "fused_ms_deform_attn"
    inputs = make_inputs(op, Case("saved", 2, 23, 4, 16, ((9, 11), (5, 6)), (4, 4), mask=True), torch.float32, kernel)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        getattr(dino_kernels, op)(**inputs, backend=kernel)
    storages = {x.untyped_storage().data_ptr() for x in inputs.values() if isinstance(x, Tensor)}
    assert saved and {tensor.untyped_storage().data_ptr() for tensor in saved} <= storages


@pytest.mark.parametrize("any_op", [op for op in OPS if op not in ATTENTION])
def test_results_of_matching_have_no_gradient_and_inputs_keep_theirs(subject):
    inputs = subject.inputs()
    expected = perform(subject.op, inputs, subject.backend)
    given = [tensor for tensor in inputs.values() if isinstance(tensor, Tensor) and tensor.is_floating_point()]
    for tensor in given:
        tensor.requires_grad_()
    results = perform(subject.op, inputs, subject.backend)
    assert not any(result.requires_grad or result.grad_fn for result in results.values())
    assert_same(results, expected)
    for tensor in given:
        tensor.sum().backward()
        assert tensor.grad is not None and (tensor.grad == 1).all()
