"""Properties of matching that need a GPU: no call synchronises, graphs replay it, calls keep to their stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops.hungarian_match import Match
from dino_kernels.targets import PackedTargets
from dino_kernels.testing import MatchingCase, assert_same_bits, matching_inputs

TIES = pytest.mark.parametrize("ties", ["lowest", "scipy"])
# So many targets that some compete for a query, and an image without any.
CASE = MatchingCase("gpu", 3, 300, 20, (12, 0, 30, 1), "collapsed")
CAPACITY = 64


@pytest.fixture(params=["cuda", "triton"])
def kernel(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    require_matching(request.param)
    return request.param


def inputs_of(case: MatchingCase, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    return matching_inputs(case, dtype, "cuda", seed)


def match_of(inputs: dict[str, Any], kernel: str, **options: Any) -> Any:
    """A `Match` with all its fields."""
    return hungarian_match(**inputs, full_output=True, backend=kernel, **options)


def match_all(inputs: dict[str, Any], kernel: str, ties: str) -> list[Tensor]:
    """One call of every op."""
    cost = matching_cost(**inputs, backend=kernel)
    offsets = inputs["targets"].offsets
    options: dict[str, Any] = {"ties": ties, "backend": kernel, "full_output": True}
    return [cost, *linear_sum_assignment(cost, offsets=offsets, **options), *match_of(inputs, kernel, ties=ties)]


@TIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", ["tensor", "list"])
def test_no_call_waits_for_the_device(kernel, waiting_is_an_error, ties, dtype, form):
    inputs = inputs_of(CASE, dtype)
    if form == "list":
        inputs |= {name: list(inputs[name]) for name in ("logits", "boxes")}
    match_all(inputs, kernel, ties)
    waiting_is_an_error()
    match_all(inputs, kernel, ties)


def test_packing_targets_that_are_on_the_device_does_not_wait(kernel, waiting_is_an_error):
    inputs = inputs_of(CASE)
    targets, counts = inputs["targets"], CASE.targets
    apart = [
        {"labels": labels, "boxes": boxes}
        for labels, boxes in zip(targets.labels.split(counts), targets.boxes_cxcywh.split(counts), strict=True)
    ]
    expected = match_of(inputs, kernel)
    waiting_is_an_error()
    result = match_of(inputs | {"targets": apart}, kernel)
    torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(result, expected, Match._fields)


@TIES
def test_a_captured_match_replays_with_other_predictions_and_targets(kernel, ties):
    inputs = inputs_of(CASE)
    fixed = PackedTargets.empty(len(CASE.targets), CAPACITY, max_targets=40, device="cuda")
    inputs["targets"] = fixed.copy_(inputs["targets"])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        match_of(inputs, kernel, ties=ties)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = match_of(inputs, kernel, ties=ties)
    for seed, targets in enumerate([(12, 0, 30, 1), (1, 40, 3, 20), (0, 0, 0, 0), (40, 0, 0, 24)]):
        case = MatchingCase("step", CASE.sets, CASE.queries, CASE.classes, targets, "collapsed")
        other = inputs_of(case, seed=seed)
        inputs["logits"].copy_(other["logits"])
        inputs["boxes"].copy_(other["boxes"])
        fixed.copy_(other["targets"])
        graph.replay()
        expected = match_of(other, kernel, ties=ties)
        used = sum(targets)
        result = captured._replace(query_idx=captured.query_idx[:, :used], target_duals=captured.target_duals[:, :used])
        assert_same_bits(result, expected, Match._fields)
        assert (captured.query_idx[:, used:] == -1).all(), "unused capacity has no query"


def test_a_call_keeps_to_the_current_stream(kernel):
    inputs = inputs_of(CASE)
    expected = match_of(inputs, kernel)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        logits = torch.zeros_like(inputs["logits"])
        torch.cuda._sleep(50_000_000)  # a call on another stream would still see the zeros
        logits.copy_(inputs["logits"])
        result = match_of(inputs | {"logits": logits}, kernel)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(result, expected, Match._fields)


def test_calls_on_two_streams_do_not_disturb_each_other(kernel):
    """State that does not fit shared memory is allocated; each call has its own."""
    calls = [inputs_of(MatchingCase("crowd", 2, 1500, 8, (1400,), "middle"), seed=seed) for seed in range(2)]
    expected = [match_of(inputs, kernel) for inputs in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    results = []
    for stream, inputs in zip(streams, calls, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append([match_of(inputs, kernel) for _ in range(3)])
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    for wanted, several in zip(expected, results, strict=True):
        for result in several:
            assert_same_bits(result, wanted, Match._fields)


def test_a_second_gpu_runs_calls_on_its_own_tensors(kernel):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = inputs_of(CASE)
    moved = {name: argument.to("cuda:1") for name, argument in inputs.items()}
    assert_same_bits(match_of(moved, kernel), match_of(inputs, kernel), Match._fields)


@pytest.mark.parametrize("kernel", ["cuda"])
def test_offsets_that_do_not_fit_end_with_a_device_assertion(require_matching, run_python, kernel):
    """In a process of its own: a device assertion ends the CUDA context."""
    require_matching(kernel)
    program = """if True:
        import sys, torch
        from dino_kernels import linear_sum_assignment
        cost, offsets = torch.zeros(1, 9, 20, device="cuda"), torch.tensor([0, 6, 4, 9], device="cuda")
        try:
            linear_sum_assignment(cost, offsets=offsets, backend=sys.argv[1])
            torch.cuda.synchronize()
        except RuntimeError:
            print("refused")
    """
    assert "refused" in run_python(program, kernel)
