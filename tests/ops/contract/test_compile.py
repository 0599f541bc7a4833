"""`torch.compile(fullgraph=True)` and `torch.export`: one graph, dynamic sizes, no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dino_kernels
from dino_kernels.nn import MSDeformAttn
from dino_kernels.ops._core import libraries
from dino_kernels.testing import Case, Result, random_grad_output, run
from tests.graphs import Graphs

SHAPES = ((9, 11), (5, 6))
LARGER = ((8, 13), (4, 7))


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def case_of(batch: int = 2, queries: int = 17, shapes: tuple[tuple[int, int], ...] = SHAPES, **options: Any) -> Case:
    return Case("compiled", batch, queries, 2, 8, shapes, (4, 4), **options)


def compiled(op: str, graphs: Callable[..., Any] | str = "aot_eager", **options: Any) -> Callable[..., Tensor]:
    function = getattr(dino_kernels, op)
    return torch.compile(lambda **inputs: function(**inputs), fullgraph=True, backend=graphs, **options)


def run_compiled(function: Callable[..., Tensor], inputs: dict[str, Any], backend: str) -> Result:
    output = function(**inputs, backend=backend)
    wanted = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad]
    grads = torch.autograd.grad(output, [inputs[name] for name in wanted], random_grad_output(output))
    return Result(output.detach(), dict(zip(wanted, grads, strict=True)))


def assert_same(result: Result, expected: Result) -> None:
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("shapes", ["tensor", "list"])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_one_graph_gives_the_eager_result(make_inputs, op, kernel, shapes, coordinates):
    inputs = make_inputs(op, case_of(reference_coordinates=coordinates, mask=True), torch.float32, kernel)
    if shapes == "list":
        inputs |= {"spatial_shapes": list(SHAPES), "level_start_index": None}
    assert_same(run_compiled(compiled(op), inputs, kernel), run(op, inputs, kernel))


def test_inductor_gives_the_eager_result(make_inputs, op, kernel):
    inputs = make_inputs(op, case_of(mask=True), torch.float32, kernel)

    def surrounded(**arguments: Any) -> Tensor:
        output = getattr(dino_kernels, op)(**{**arguments, "value": arguments["value"] * 2}, backend=kernel)
        return torch.relu(output) + 1

    # Neither pattern matching nor a precompiled header: they take a minute of a cold start and are not ours.
    quick = {"cpp_cache_precompile_headers": False, "pattern_matcher": False, "cpp.simdlen": 0}
    output = torch.compile(surrounded, fullgraph=True, options=quick)(**inputs)
    torch.testing.assert_close(output, surrounded(**inputs))
    (grad,) = torch.autograd.grad(output.sum(), inputs["value"])
    (expected,) = torch.autograd.grad(surrounded(**inputs).sum(), inputs["value"])
    torch.testing.assert_close(grad, expected)


def test_marked_batch_and_queries_compile_once(make_inputs, op, kernel):
    graphs = Graphs()
    function = compiled(op, graphs)
    for batch, queries in ((2, 17), (3, 29), (5, 6)):
        inputs = make_inputs(op, case_of(batch, queries), torch.float32, kernel, requires_grad=False)
        for name, argument in inputs.items():
            if isinstance(argument, Tensor) and name not in ("spatial_shapes", "level_start_index"):
                torch._dynamo.mark_dynamic(argument, 0)
                if name != "value":
                    torch._dynamo.mark_dynamic(argument, 1)
        expected = getattr(dino_kernels, op)(**inputs, backend=kernel)
        torch.testing.assert_close(function(**inputs, backend=kernel), expected)
    assert len(graphs.graphs) == 1


@pytest.mark.parametrize("needs_grad", [False, True], ids=["inference", "training"])
def test_other_image_sizes_in_a_tensor_do_not_recompile(make_inputs, op, kernel, needs_grad):
    graphs = Graphs()
    function = compiled(op, graphs, dynamic=True)
    for shapes in (SHAPES, LARGER, ((3, 5), (2, 2))):
        inputs = make_inputs(op, case_of(shapes=shapes, mask=True), torch.float32, kernel, requires_grad=needs_grad)
        output = function(**inputs, backend=kernel)
        torch.testing.assert_close(output, getattr(dino_kernels, op)(**inputs, backend=kernel))
    assert len(graphs.graphs) == 1


def test_other_image_sizes_in_a_list_compile_once_more_at_most(make_inputs, op, kernel):
    """Sizes that are numbers become symbols as soon as they change."""
    graphs = Graphs()
    function = compiled(op, graphs, dynamic=True)
    for shapes in (SHAPES, LARGER, ((3, 5), (2, 2)), ((12, 4), (6, 7)), ((7, 7), (8, 9))):
        inputs = make_inputs(op, case_of(shapes=shapes), torch.float32, kernel)
        inputs |= {"spatial_shapes": list(shapes), "level_start_index": None}
        output = function(**inputs, backend=kernel)
        torch.testing.assert_close(output, getattr(dino_kernels, op)(**inputs, backend=kernel))
    assert len(graphs.graphs) <= 2


def test_dynamic_training_gives_the_eager_gradients(make_inputs, op, kernel):
    function = compiled(op, dynamic=True)
    for batch, queries, shapes in ((2, 17, SHAPES), (3, 29, LARGER)):
        inputs = make_inputs(op, case_of(batch, queries, shapes, mask=True), torch.float32, kernel)
        assert_same(run_compiled(function, inputs, kernel), run(op, inputs, kernel))
        inputs |= {"spatial_shapes": list(shapes), "level_start_index": None}
        assert_same(run_compiled(function, inputs, kernel), run(op, inputs, kernel))


@pytest.mark.parametrize("shapes", ["tensor", "list"])
def test_the_graph_never_reads_a_tensor_on_the_host(make_inputs, op, kernel, shapes):
    graphs = Graphs()
    inputs = make_inputs(op, case_of(mask=True), torch.float32, kernel)
    if shapes == "list":
        inputs |= {"spatial_shapes": list(SHAPES), "level_start_index": None}
    compiled(op, graphs)(**inputs, backend=kernel)
    (graph,) = graphs.graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
    assert any(f"dino_kernels.{op}" in name for name in called)
    assert not [name for name in called if any(word in name for word in ("item", "tolist", "nonzero", "cpu", "equal"))]


def layer_inputs(batch: int, queries: int, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    rows = sum(height * width for height, width in shapes)
    return (
        torch.randn(batch, queries, 32, generator=generator),
        torch.rand(batch, queries, 2, 4, generator=generator),
        torch.randn(batch, rows, 32, generator=generator),
        torch.tensor(shapes),
        torch.tensor([0, shapes[0][0] * shapes[0][1]]),
        torch.rand(batch, rows, generator=generator) < 0.2,
    )


class Layer(nn.Module):
    """MSDeformAttn with arguments by position, as export wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MSDeformAttn(32, n_levels=2, n_heads=4, n_points=2)

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.attention(*arguments)


def test_the_module_compiles_into_one_graph_with_gradients():
    layer = Layer()
    arguments = layer_inputs(2, 17, SHAPES)
    output = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)(*arguments)
    torch.testing.assert_close(output, layer(*arguments))
    parameters = list(layer.parameters())
    for grad, expected in zip(
        torch.autograd.grad(output.sum(), parameters),
        torch.autograd.grad(layer(*arguments).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected)


def test_an_exported_module_runs_at_other_sizes():
    layer = Layer().eval()
    batch, queries, rows = (torch.export.Dim(name, min=2, max=4096) for name in ("batch", "queries", "rows"))
    dynamic = {
        "arguments": (
            {0: batch, 1: queries},
            {0: batch, 1: queries},
            {0: batch, 1: rows},
            {},
            {},
            {0: batch, 1: rows},
        )
    }
    program = torch.export.export(layer, layer_inputs(2, 17, SHAPES), dynamic_shapes=dynamic)
    for batch_size, query_count, shapes in ((2, 17, SHAPES), (3, 31, LARGER)):
        arguments = layer_inputs(batch_size, query_count, shapes)
        torch.testing.assert_close(program.module()(*arguments), layer(*arguments))


def test_an_exported_program_survives_saving_and_decomposing(tmp_path):
    layer = Layer().eval()
    arguments = layer_inputs(2, 17, SHAPES)
    program = torch.export.export(layer, arguments)
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2")
    torch.testing.assert_close(loaded.module()(*arguments), layer(*arguments))
    torch.testing.assert_close(program.run_decompositions().module()(*arguments), layer(*arguments))


def test_make_fx_traces_forward_and_backward(make_inputs, op, kernel):
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = make_inputs(op, case_of(), torch.float32, kernel)
    names = [name for name, argument in inputs.items() if isinstance(argument, Tensor)]
    tensors = [inputs[name] for name in names]

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, tensors, strict=True))
        output = getattr(dino_kernels, op)(**{**inputs, **named}, backend=kernel)
        return output, torch.autograd.grad(output.sum(), named["value"])[0]

    graph = make_fx(both, tracing_mode="symbolic")(*tensors)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert f"dino_kernels.{op}.default" in targets and f"dino_kernels.{op}_backward.default" in targets
    for traced, eager in zip(graph(*tensors), both(*tensors), strict=True):
        torch.testing.assert_close(traced, eager)


def test_which_gpu_there_is_counts_as_constant():
    """Marked by hand, because PyTorch's own decorator would import the compiler with the package."""
    marks = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marks and marks.items() <= vars(libraries.unsupported_gpu).items()
