"""`opcheck`, `torch.compile(fullgraph=True)` and `torch.export` of the matching ops: one graph, any sizes, no wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

import dino_kernels
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.targets import PackedTargets
from dino_kernels.testing import (
    DTYPES,
    AssignmentCase,
    MatchingCase,
    assert_same_bits,
    assignment_costs,
    matching_inputs,
)
from tests.graphs import Graphs

OPS = ("matching_cost", "linear_sum_assignment", "hungarian_match")
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
CASES = [
    MatchingCase("usual", 2, 6, 3, (2, 1)),
    MatchingCase("more_targets", 1, 2, 3, (4, 0)),
    MatchingCase("no_targets", 2, 4, 3, (0, 0)),
    MatchingCase("no_queries", 1, 0, 3, (2,)),
    MatchingCase("no_images", 1, 4, 3, ()),
]


@pytest.fixture(params=OPS)
def matching_op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def op_inputs(op: str, case: MatchingCase, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    inputs = matching_inputs(case, dtype, device)
    if op != "linear_sum_assignment":
        return inputs
    return {"cost": dino_kernels.matching_cost(**inputs, backend="reference"), "offsets": inputs["targets"].offsets}


def options_of(op: str, full: bool = True) -> dict[str, Any]:
    return {} if op == "matching_cost" else {"full_output": full}


def call(op: str, inputs: dict[str, Any], backend: str, **options: Any) -> tuple[Tensor, ...]:
    result = getattr(dino_kernels, op)(**inputs, backend=backend, **options)
    return (result,) if isinstance(result, Tensor) else tuple(tensor for tensor in result if tensor is not None)


def assert_same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(results) == len(expected)
    assert_same_bits(results, expected, [str(index) for index in range(len(expected))])


def runner(op: str, backend: str) -> Callable[..., Any]:
    """Takes tensors by position; packed targets are made within."""
    options = options_of(op)

    def run(first: Any, boxes: Any, labels: Any, truth: Any, offsets: Tensor, max_targets: int) -> Any:
        if op == "linear_sum_assignment":
            return call(op, {"cost": first, "offsets": offsets}, backend, **options)
        targets = PackedTargets(labels, truth, offsets, max_targets)
        return call(op, {"logits": first, "boxes": boxes, "targets": targets}, backend, **options)

    return run


def compiled(
    op: str, backend: str, graphs: Callable[..., Any] | str = "aot_eager", **options: Any
) -> Callable[..., Any]:
    return torch.compile(runner(op, backend), fullgraph=True, backend=graphs, **options)


def positional(op: str, inputs: dict[str, Any]) -> tuple[Any, ...]:
    if op == "linear_sum_assignment":
        return inputs["cost"], None, None, None, inputs["offsets"], 0
    targets = inputs["targets"]
    return (
        inputs["logits"],
        inputs["boxes"],
        targets.labels,
        targets.boxes_cxcywh,
        targets.offsets,
        targets.max_targets,
    )


@pytest.mark.parametrize("full", [True, False], ids=["full", "brief"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_opcheck(matching_kernel, device, matching_op, case, full):
    inputs = {**op_inputs(matching_op, case, device), **options_of(matching_op, full)}
    arguments = (*ops()[matching_op].prepare(**inputs), matching_kernel)
    # The AOT check takes most of a second.
    tests = QUICK if case.name != "usual" or full is False else (*QUICK, "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.dino_kernels, matching_op).default, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["matching_cost", "hungarian_match"])
def test_opcheck_of_every_dtype_and_of_lists(matching_kernel, device, op, dtype):
    inputs = op_inputs(op, CASES[0], device, DTYPES[dtype])
    inputs |= {name: [inputs[name], inputs[name][:, :, :4]] for name in ("logits", "boxes")}
    inputs["extra_cost"] = torch.rand(4, 3, 6, device=device)
    arguments = (*ops()[op].prepare(**inputs), matching_kernel)
    torch.library.opcheck(getattr(torch.ops.dino_kernels, op).default, arguments, test_utils=QUICK)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3), (0, 3, 3), (2, 0, 4)])
@pytest.mark.parametrize("sizes", [False, True], ids=["whole", "sizes"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_opcheck_of_dense_batches(matching_kernel, device, shape, sizes, dtype):
    cost = assignment_costs(AssignmentCase("dense", *shape, kind="integers"), DTYPES[dtype], device)
    given = [[shape[1], shape[2]]] * shape[0] if sizes else None
    for full in (True, False):
        arguments = ops()["linear_sum_assignment"].prepare(cost, given, full_output=full)
        torch.library.opcheck(
            torch.ops.dino_kernels.linear_sum_assignment.default, (*arguments, matching_kernel), test_utils=QUICK
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fake_tensors_have_the_shapes_of_real_ones(matching_backend, device, matching_op, case):
    from torch._subclasses import FakeTensorMode

    inputs = op_inputs(matching_op, case, device)
    if matching_backend == "reference":
        pytest.skip("the reference reads its tensors")
    for full in (True, False):
        options = options_of(matching_op, full)
        real = call(matching_op, inputs, matching_backend, **options)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes: Any = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in positional(matching_op, inputs)]
            if matching_op == "linear_sum_assignment":
                faked = {"cost": fakes[0], "offsets": fakes[4]}
            else:
                faked = {"logits": fakes[0], "boxes": fakes[1], "targets": PackedTargets(*fakes[2:])}
            fake = call(matching_op, faked, matching_backend, **options)
        described = [[(x.shape, x.dtype, x.device, x.stride()) for x in results] for results in (fake, real)]
        assert described[0] == described[1]


def test_one_graph_gives_the_eager_result(matching_kernel, device, matching_op):
    inputs = op_inputs(matching_op, CASES[0], device)
    results = compiled(matching_op, matching_kernel)(*positional(matching_op, inputs))
    assert_same(results, call(matching_op, inputs, matching_kernel, **options_of(matching_op)))


def test_inductor_gives_the_eager_result(matching_kernel, device, matching_op):
    inputs = op_inputs(matching_op, CASES[0], device)

    run = runner(matching_op, matching_kernel)

    def surrounded(first: Tensor, *rest: Any) -> list[Tensor]:
        return [result + 1 for result in run(first * 2, *rest)]

    # Neither pattern matching nor a precompiled header: they take a minute of a cold start and are not ours.
    quick = {"cpp_cache_precompile_headers": False, "pattern_matcher": False, "cpp.simdlen": 0}
    results = torch.compile(surrounded, fullgraph=True, options=quick)(*positional(matching_op, inputs))
    assert_same(tuple(results), tuple(surrounded(*positional(matching_op, inputs))))


def test_another_number_of_targets_or_queries_does_not_recompile(matching_kernel, device, matching_op):
    """DINO's T changes with every step. (0 and 1 are special to PyTorch.)"""
    graphs = Graphs()
    function = compiled(matching_op, matching_kernel, graphs, dynamic=True)
    for queries, targets in ((6, (2, 3)), (6, (4, 3)), (9, (0, 2)), (5, (7, 3)), (7, (5, 4))):
        inputs = op_inputs(matching_op, MatchingCase("step", 2, queries, 3, targets), device)
        results = function(*positional(matching_op, inputs))
        assert_same(results, call(matching_op, inputs, matching_kernel, **options_of(matching_op)))
    assert len(graphs.graphs) == 1


def test_marked_sizes_compile_once(matching_kernel, device, matching_op):
    graphs = Graphs()
    function = compiled(matching_op, matching_kernel, graphs)
    for queries, targets in ((6, (2, 3)), (9, (4, 4)), (5, (1, 2))):
        inputs = op_inputs(matching_op, MatchingCase("marked", 2, queries, 3, targets), device)
        arguments = positional(matching_op, inputs)
        if matching_op == "linear_sum_assignment":
            torch._dynamo.mark_dynamic(arguments[0], (1, 2))
        else:
            for tensor in arguments[:2]:
                torch._dynamo.mark_dynamic(tensor, 2)
            for tensor in arguments[2:4]:
                torch._dynamo.mark_dynamic(tensor, 0)
            arguments = (*arguments[:5], 4)  # max_targets, as of a fixed capacity
        results = function(*arguments)
        assert_same(results, call(matching_op, inputs, matching_kernel, **options_of(matching_op)))
    assert len(graphs.graphs) == 1


def test_packed_targets_are_arguments_of_a_compiled_function(matching_kernel, device):
    graphs = Graphs()

    def run(logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        return dino_kernels.hungarian_match(logits, boxes, targets, backend=matching_kernel).query_idx

    function = torch.compile(run, fullgraph=True, backend=graphs)
    for seed in range(2):
        inputs = matching_inputs(CASES[0], device=device, seed=seed)
        assert torch.equal(function(**inputs), run(**inputs))
    assert len(graphs.graphs) == 1


def test_targets_of_a_fixed_capacity_never_recompile(matching_kernel, device):
    graphs = Graphs()

    def run(logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        return dino_kernels.hungarian_match(logits, boxes, targets, backend=matching_kernel).query_idx

    function = torch.compile(run, fullgraph=True, backend=graphs, dynamic=False)
    fixed = PackedTargets.empty(2, 9, device=device)
    for targets in ((2, 3), (0, 0), (1, 8), (9, 0)):
        inputs = matching_inputs(MatchingCase("step", 2, 9, 3, targets), device=device)
        inputs["targets"] = fixed.copy_(inputs["targets"])
        assert torch.equal(function(**inputs), run(**inputs))
    assert len(graphs.graphs) == 1


def test_dictionaries_are_packed_within_the_graph(matching_kernel, device):
    inputs = matching_inputs(CASES[0], device=device)
    counts = list(inputs["targets"].counts)
    targets = inputs["targets"]
    listed = [
        {"labels": labels, "boxes": boxes}
        for labels, boxes in zip(targets.labels.split(counts), targets.boxes_cxcywh.split(counts), strict=True)
    ]

    def run(targets: Any) -> Tensor:
        given = {**inputs, "targets": targets}
        return dino_kernels.hungarian_match(**given, backend=matching_kernel).query_idx

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(listed), run(listed))


@pytest.mark.parametrize("sizes", ["none", "list", "tensor"])
def test_dense_batches_compile_into_one_graph(matching_kernel, device, sizes):
    cost = assignment_costs(AssignmentCase("dense", 2, 4, 7), device=device)
    given: Any = {"none": None, "list": [5, 7], "tensor": torch.tensor([[2, 5], [4, 7]], device=device)}[sizes]

    def run(cost: Tensor) -> Any:
        return dino_kernels.linear_sum_assignment(cost, given, full_output=True, backend=matching_kernel)

    results = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)(cost)
    assert_same(tuple(results), tuple(run(cost)))


def test_the_graph_never_reads_a_tensor_on_the_host(matching_kernel, device, matching_op):
    graphs = Graphs()
    inputs = op_inputs(matching_op, CASES[0], device)
    compiled(matching_op, matching_kernel, graphs)(*positional(matching_op, inputs))
    (graph,) = graphs.graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
    assert any(f"dino_kernels.{matching_op}" in name for name in called)
    words = {"item", "tolist", "nonzero", "cpu", "equal"}
    assert not [name for name in called if words & set(re.findall(r"[a-z]+", name))]


def test_make_fx_traces_with_symbols(matching_kernel, device, matching_op):
    from torch.fx.experimental.proxy_tensor import make_fx

    arguments = positional(matching_op, op_inputs(matching_op, CASES[0], device))
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]

    function = runner(matching_op, matching_kernel)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        return function(*[next(given) if isinstance(argument, Tensor) else argument for argument in arguments])

    graph = make_fx(run, tracing_mode="symbolic")(*tensors)
    assert f"dino_kernels.{matching_op}.default" in [str(node.target) for node in graph.graph.nodes]
    assert_same(graph(*tensors), run(*tensors))


class Matcher(nn.Module):
    """With arguments by position, as export wants them."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self, logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor, offsets: Tensor
    ) -> tuple[Tensor, ...]:
        targets = PackedTargets(labels, truth, offsets, 100)
        inputs = {"logits": logits, "boxes": boxes, "targets": targets}
        cost = dino_kernels.matching_cost(**inputs, backend=self.backend)
        columns = dino_kernels.linear_sum_assignment(cost, offsets=offsets, backend=self.backend)
        return cost, columns, dino_kernels.hungarian_match(**inputs, backend=self.backend).query_idx


def test_an_exported_program_runs_at_other_sizes_and_survives_saving(matching_kernel, device, tmp_path):
    matcher = Matcher(matching_kernel)

    def arguments(queries: int, *targets: int) -> tuple[Tensor, ...]:
        inputs = matching_inputs(MatchingCase("export", 2, queries, 3, targets), device=device)
        return positional("hungarian_match", inputs)[:5]

    queries, targets = torch.export.Dim("queries", min=2, max=4096), torch.export.Dim("targets", min=2, max=4096)
    dynamic = ({2: queries}, {2: queries}, {0: targets}, {0: targets}, {})
    program = torch.export.export(matcher, arguments(6, 2, 3), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "matcher.pt2")
    loaded = torch.export.load(tmp_path / "matcher.pt2")
    for given in (arguments(6, 2, 3), arguments(9, 5, 6), arguments(4, 7, 0)):
        for exported in (program, loaded):
            assert_same(exported.module()(*given), matcher(*given))
    assert_same(program.run_decompositions().module()(*arguments(6, 2, 3)), matcher(*arguments(6, 2, 3)))


@pytest.mark.parametrize("check", ["warn", "raise"])
def test_a_check_reads_the_status_and_so_cannot_be_in_one_graph(matching_kernel, device, check):
    cost = assignment_costs(AssignmentCase("checked", 2, 3, 5), device=device)

    def run(cost: Tensor) -> Tensor:
        return dino_kernels.linear_sum_assignment(cost, check=check, backend=matching_kernel)

    with pytest.raises(Unsupported):
        torch.compile(run, fullgraph=True, backend="aot_eager")(cost)
    # With a break in the graph it works.
    assert torch.equal(torch.compile(run, backend="aot_eager")(cost), run(cost))
