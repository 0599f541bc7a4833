"""`torch.compile(fullgraph=True)` of every op: one graph, any sizes, no synchronisation with the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.fx.experimental.proxy_tensor import make_fx

import dino_kernels
from dino_kernels import PackedTargets
from dino_kernels.ops._core import libraries
from dino_kernels.testing import AssignmentCase, MatchingCase, assignment_costs, matching_inputs, random_grad_output
from tests.graphs import Graphs
from tests.ops.contract.calls import ATTENTION, OPS, Inputs, call, tensors_of
from tests.ops.contract.conftest import Subject

pytestmark = pytest.mark.compiler

Tensors = dict[str, Tensor]


# Compilers see the registered op, whose backend is a string: emulated and interpreted kernels would show nothing more.
COMPILED = ("cpu", "triton", "cuda")


@pytest.fixture(params=COMPILED)
def subject(request: pytest.FixtureRequest, any_op: str, require: Callable[..., None]) -> Subject:
    return Subject(any_op, request.param, require)


@pytest.fixture(params=COMPILED)
def matching_kernel(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    require_matching(request.param)
    return request.param


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def split(op: str, inputs: Inputs) -> tuple[Tensors, dict[str, Any]]:
    """Split a call into its tensors by path and all other arguments."""
    others = {name: argument for name, argument in inputs.items() if not isinstance(argument, (Tensor, PackedTargets))}
    if "targets" in inputs:
        others["max_targets"] = inputs["targets"].max_targets
    return dict(tensors_of(op, inputs)), others


def runner(op: str, backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the parts of a call, as `split` has them; targets are packed within."""

    def run(tensors: Tensors, others: dict[str, Any]) -> tuple[Tensor, ...]:
        inputs: dict[str, Any] = {**tensors, **others}
        if "max_targets" in inputs:
            labels, boxes, offsets = (inputs.pop(f"targets.{field}") for field in ("labels", "boxes_cxcywh", "offsets"))
            inputs["targets"] = PackedTargets(labels, boxes, offsets, inputs.pop("max_targets"))
        returned = call(op, inputs, backend)
        return returned if isinstance(returned, tuple) else (returned,)

    return run


def with_gradients(results: tuple[Tensor, ...], tensors: Tensors) -> list[Tensor]:
    differentiated = [tensor for tensor in tensors.values() if tensor.requires_grad]
    if not differentiated or not results[0].requires_grad:
        return list(results)
    return [*results, *torch.autograd.grad(results[0], differentiated, random_grad_output(results[0]))]


def compiled(op: str, backend: str, graphs: Any = "aot_eager", **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(runner(op, backend), fullgraph=True, backend=graphs, **options)


def assert_eager_results(subject: Any, function: Callable[..., Any], inputs: Inputs) -> None:
    parts = split(subject.op, inputs)
    got = with_gradients(function(*parts), parts[0])
    expected = with_gradients(runner(subject.op, subject.backend)(*parts), parts[0])
    assert len(got) == len(expected)
    for tensor, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor, wanted, equal_nan=True)


def as_list(inputs: Inputs) -> Inputs:
    """The same call with levels that are numbers, not tensors."""
    shapes = [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
    return inputs | {"spatial_shapes": shapes, "level_start_index": None}


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("form", ["tensor", "list"])
@pytest.mark.parametrize("any_op", ATTENTION)
def test_one_graph_gives_the_eager_result_for_every_form_of_attention(subject, form, coordinates):
    inputs = subject.inputs(coordinates=coordinates)
    inputs = as_list(inputs) if form == "list" else inputs
    assert_eager_results(subject, compiled(subject.op, subject.backend), inputs)


def test_one_graph_gives_the_eager_result_and_never_reads_a_tensor_on_the_host(subject):
    graphs = Graphs()
    assert_eager_results(subject, compiled(subject.op, subject.backend, graphs), subject.inputs())
    (graph,) = graphs.graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
    assert any(f"dino_kernels.{subject.op}" in name for name in called)
    words = {"item", "tolist", "nonzero", "cpu", "equal"}
    assert not [name for name in called if words & set(re.findall(r"[a-z]+", name))]


def test_inductor_gives_the_eager_result(subject):
    run = runner(subject.op, subject.backend)
    first = OPS[subject.op].tensors[0]

    def surrounded(tensors: Tensors, others: dict[str, Any]) -> list[Tensor]:
        return [result + 1 for result in run({**tensors, first: tensors[first] * 2}, others)]

    # Neither pattern matching nor a precompiled header: they take a minute of a cold start and are not ours.
    quick = {"cpp_cache_precompile_headers": False, "pattern_matcher": False, "cpp.simdlen": 0}
    parts = split(subject.op, subject.inputs())
    results = torch.compile(surrounded, fullgraph=True, options=quick)(*parts)
    expected = surrounded(*parts)
    got, wanted = (with_gradients(tuple(each), parts[0]) for each in (results, expected))
    torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["inference", "training"])
def test_calls_of_other_sizes_do_not_recompile(subject, needs_grad):
    graphs = Graphs()
    function = compiled(subject.op, subject.backend, graphs, dynamic=True)
    for sizes in OPS[subject.op].steps:
        with torch.set_grad_enabled(needs_grad):
            assert_eager_results(subject, function, subject.inputs(**sizes))
    assert len(graphs.graphs) == 1


@pytest.mark.parametrize("any_op", ATTENTION)
def test_other_image_sizes_in_a_list_compile_once_more_at_most(subject):
    """Sizes that are numbers become symbols as soon as they change."""
    graphs = Graphs()
    function = compiled(subject.op, subject.backend, graphs, dynamic=True)
    for shapes in (((9, 11), (5, 6)), ((8, 13), (4, 7)), ((3, 5), (2, 2)), ((12, 4), (6, 7)), ((7, 7), (8, 9))):
        assert_eager_results(subject, function, as_list(subject.inputs(levels=shapes)))
    assert len(graphs.graphs) <= 2


def test_marked_sizes_compile_once(subject):
    graphs = Graphs()
    function = compiled(subject.op, subject.backend, graphs)
    for sizes in OPS[subject.op].marked:
        tensors, others = split(subject.op, subject.inputs(**sizes))
        tensors = {path: tensor.detach() for path, tensor in tensors.items()}
        for path, dimensions in OPS[subject.op].dynamic.items():
            torch._dynamo.mark_dynamic(tensors[path], dimensions)
        torch.testing.assert_close(
            function(tensors, others), runner(subject.op, subject.backend)(tensors, others), equal_nan=True
        )
    assert len(graphs.graphs) == 1


def test_make_fx_traces_with_symbols(subject):
    tensors, others = split(subject.op, subject.inputs())
    run = runner(subject.op, subject.backend)

    def both(*given: Tensor) -> list[Tensor]:
        named = dict(zip(tensors, given, strict=True))
        results = run(named, others)
        first = next(iter(named.values()))
        return [*results, *(torch.autograd.grad(results[0].sum(), first) if first.requires_grad else ())]

    graph = make_fx(both, tracing_mode="symbolic")(*tensors.values())
    targets = [str(node.target) for node in graph.graph.nodes]
    assert f"dino_kernels.{subject.op}.default" in targets
    assert subject.op not in ATTENTION or f"dino_kernels.{subject.op}_backward.default" in targets
    torch.testing.assert_close(graph(*tensors.values()), both(*tensors.values()), equal_nan=True)


def matched(logits: Tensor, boxes: Tensor, targets: Any, backend: str) -> Tensor:
    return dino_kernels.hungarian_match(logits, boxes, targets, backend=backend).query_idx


@pytest.mark.parametrize("capacity", [None, 9])
def test_packed_targets_are_arguments_of_a_compiled_function(matching_kernel, device, capacity):
    """Those of a fixed capacity never recompile, whatever the number of targets."""
    graphs = Graphs()
    function = torch.compile(matched, fullgraph=True, backend=graphs, dynamic=False)
    fixed = PackedTargets.empty(2, 9, device=device)
    for seed, targets in enumerate(((2, 3), (2, 3)) if capacity is None else ((2, 3), (0, 0), (1, 8), (9, 0))):
        inputs = matching_inputs(MatchingCase("step", 2, 9, 3, targets), device=device, seed=seed)
        if capacity:
            inputs["targets"] = fixed.copy_(inputs["targets"])
        assert torch.equal(function(**inputs, backend=matching_kernel), matched(**inputs, backend=matching_kernel))
    assert len(graphs.graphs) == 1


def test_dictionaries_are_packed_within_the_graph(matching_kernel, device):
    inputs = matching_inputs(MatchingCase("usual", 2, 6, 3, (2, 1)), device=device)
    targets = inputs["targets"]
    counts = list(targets.counts)
    listed = [
        {"labels": labels, "boxes": boxes}
        for labels, boxes in zip(targets.labels.split(counts), targets.boxes_cxcywh.split(counts), strict=True)
    ]
    arguments = (inputs["logits"], inputs["boxes"], listed, matching_kernel)
    assert torch.equal(torch.compile(matched, fullgraph=True, backend="aot_eager")(*arguments), matched(*arguments))


@pytest.mark.parametrize("sizes", ["none", "list", "tensor", "offsets"])
def test_batches_of_every_form_compile_into_one_graph(matching_kernel, device, sizes):
    cost = assignment_costs(AssignmentCase("dense", 2, 4, 7), device=device)
    given: dict[str, Any] = {
        "none": {},
        "list": {"sizes": [5, 7]},
        "tensor": {"sizes": torch.tensor([[2, 5], [4, 7]], device=device)},
        "offsets": {"offsets": torch.tensor([0, 1, 4], device=device)},
    }[sizes]

    def run(cost: Tensor) -> Any:
        return dino_kernels.linear_sum_assignment(cost, **given, full_output=True, backend=matching_kernel)

    results = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)(cost)
    torch.testing.assert_close(tuple(results), tuple(run(cost)), rtol=0, atol=0)


@pytest.mark.parametrize("check", ["warn", "raise"])
def test_a_check_reads_the_status_and_so_cannot_be_in_one_graph(cpu_kernel, check):
    cost = assignment_costs(AssignmentCase("checked", 2, 3, 5))

    def run(cost: Tensor) -> Tensor:
        return dino_kernels.linear_sum_assignment(cost, check=check, backend=cpu_kernel)

    with pytest.raises(Unsupported):
        torch.compile(run, fullgraph=True, backend="aot_eager")(cost)
    # With a break in the graph it works.
    assert torch.equal(torch.compile(run, backend="aot_eager")(cost), run(cost))


def test_which_gpu_there_is_counts_as_constant():
    """Marked by hand, because PyTorch's own decorator would import the compiler with the package."""
    marks = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marks and marks.items() <= vars(libraries.unsupported_gpu).items()
