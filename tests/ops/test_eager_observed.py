"""Modes, hooks, transforms and compilers observe the registered op, also after eager calls that skip it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dino_kernels
from dino_kernels import UnsupportedError
from dino_kernels.ops._core import eager
from dino_kernels.testing import random_grad_output, run, sample_inputs
from tests.graphs import Graphs
from tests.ops.contract.test_arguments import CASE
from tests.ops.eager_calls import Seen, forget_calls, registered, registered_ops_only


@pytest.fixture(autouse=True)
def no_calls_seen() -> None:
    forget_calls()


@pytest.fixture
def call(op) -> Callable[..., Tensor]:
    return getattr(dino_kernels, op)


@pytest.fixture
def inputs(op) -> dict[str, Any]:
    return sample_inputs(op, CASE, torch.float32)


class SeenFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_modes_see_the_registered_op_in_later_calls(op, call, inputs, mode):
    for _ in range(3):
        run(op, inputs, "cpu")
    with mode() as seen:
        run(op, inputs, "cpu")
    assert f"dino_kernels.{op}.default" in seen.names
    if mode is Seen:
        assert f"dino_kernels.{op}_backward.default" in seen.names
    output = call(**inputs)
    with Seen() as seen:
        output.sum().backward()
    assert f"dino_kernels.{op}_backward.default" in seen.names


def test_hooks_of_saved_tensors_get_the_same_tensors_in_later_calls(op, call, inputs):
    saved: list[list[torch.Size]] = []
    for _ in range(3):
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):  # noqa: B023
            output = call(**inputs)
        output.sum().backward()
        saved.append(shapes)
        run(op, inputs, "cpu")
    assert saved[0] and saved[0] == saved[1] == saved[2]


def test_checkpoint_recomputes_under_other_modes_than_forward(op, call, inputs):
    from torch.utils.checkpoint import checkpoint

    expected = run(op, inputs, "cpu").grads["value"]
    with Seen():
        output: Any = checkpoint(lambda value: call(**{**inputs, "value": value}), inputs["value"], use_reentrant=False)
    grad = random_grad_output(output)
    torch.testing.assert_close(torch.autograd.grad(output, inputs["value"], grad)[0], expected)


def outcome(function: Callable[[], Any]) -> Any:
    """Return the result of a function, or the class of its error."""
    try:
        return function()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "vjp", "batched gradients"])
def test_transforms_give_the_same_as_with_registered_ops(op, call, inputs, transform):
    value = inputs["value"]

    def of(value: Tensor) -> Tensor:
        return call(**{**inputs, "value": value})

    def transformed() -> Any:
        if transform == "grad":
            return torch.func.grad(lambda value: of(value).sum())(value.detach())
        if transform == "vmap":
            return torch.vmap(of)(torch.stack([value, 2 * value]).detach())
        if transform == "jvp":
            return torch.func.jvp(of, (value.detach(),), (value.detach(),))
        if transform == "vjp":
            return torch.func.vjp(of, value.detach())[0]
        output = of(value)
        return torch.autograd.grad(output, value, torch.stack([output, 2 * output]).detach(), is_grads_batched=True)[0]

    with registered_ops_only():
        expected = outcome(transformed)
    for _ in range(3):
        run(op, inputs, "cpu")
        call(**{name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()})
        result = outcome(transformed)
        if isinstance(expected, type):
            assert result is expected
        else:
            torch.testing.assert_close(result, expected)


def test_fake_tensors_and_meta_tensors_are_as_in_a_first_call(op, call, inputs):
    from torch._subclasses import FakeTensorMode

    for _ in range(3):
        run(op, inputs, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    for _ in range(3):
        with mode:
            output = call(**fakes, backend="cpu")
        assert type(output).__name__ == "FakeTensor" and output.shape == (2, 7, 32)
    on_meta = {name: x.detach().to("meta") if isinstance(x, Tensor) else x for name, x in inputs.items()}
    for _ in range(3):
        with pytest.raises(UnsupportedError, match="it runs on CPU tensors, value is on meta"):
            call(**on_meta, backend="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_is_refused_in_later_calls_too(op, call, inputs):
    """Sizes are tensors during tracing."""
    detached = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    for _ in range(3):
        call(**detached)
        with pytest.raises(TypeError, match="num_points must be 2 counts, a list of integers"):
            torch.jit.trace(lambda value: call(**{**detached, "value": value}), detached["value"], check_trace=False)


def test_a_torch_without_the_private_functions_uses_the_registered_op_in_every_call(op, inputs):
    assert eager._AVAILABLE, "this torch has changed the private functions that recognise ordinary calls"
    with registered_ops_only():
        for _ in range(2):
            assert registered(lambda: run(op, inputs, "cpu")) == {op, f"{op}_backward"}


def test_compiling_after_eager_calls_gives_one_graph_with_the_op(op, call, inputs):
    expected = run(op, inputs, "cpu").output
    for _ in range(3):
        run(op, inputs, "cpu")
    graphs = Graphs()
    torch._dynamo.reset()
    compiled = torch.compile(lambda **named: call(**named), fullgraph=True, backend=graphs)
    for _ in range(3):
        torch.testing.assert_close(compiled(**inputs), expected)
        run(op, inputs, "cpu")
    (graph,) = graphs.graphs
    assert any(f"dino_kernels.{op}" in str(node.target) for node in graph.graph.nodes)
    torch._dynamo.reset()
