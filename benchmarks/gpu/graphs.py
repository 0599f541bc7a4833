"""Calls captured in CUDA graphs: what is left of a call's time without Python and launches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.stage import Contestant
from benchmarks.gpu.isolated import Reporter
from benchmarks.measure.race import Call
from dino_kernels.testing import Case, Result

# The mode of a call that is timed without its launches, and without a graph.
KERNELS = "kernels"
# A decoder's call is short, and a graph of several shows what is left of it behind others. Their L2 is warm.
CALLS_PER_GRAPH = 10
# Of the largest entry. Sums of 16-bit atomics differ by several per cent from one call to the next.
REPLAY_TOLERANCE = 0.25
# Of integers; far from any index.
NO_RESULT = -1_000_000_000


def modes(case: Case) -> dict[str, int]:
    """Name of a way to capture, and how many calls a graph has in it."""
    return {"graph": 1} | ({f"graph of {CALLS_PER_GRAPH}": CALLS_PER_GRAPH} if case.queries != case.S else {})


class Graphed:
    """A call captured in a CUDA graph, `times` times in a row; calling this replays the graph.

    `result` is what the captured call returned; every replay writes its tensors anew.
    """

    def __init__(self, call: Call, times: int = 1) -> None:
        # Kernels are compiled and caches filled before, on a stream that is not the default one, as in a capture.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for _ in range(times):
                self.result = call()

    def __call__(self) -> None:
        self.graph.replay()


def assert_never_waits(call: Call) -> None:
    """Raise where the call waits for the GPU, which no graph can hold.

    Asked before a capture, because a capture that fails leaves torch's allocator unfit for the next one.
    """
    call()  # what is cached on the host has been read by then
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def time_graphs(
    reporter: Reporter,
    which: str,
    mode: str,
    each: int,
    calls: Mapping[Contestant, Call],
    time_calls: Callable[..., Any],
) -> None:
    """Capture every call, then time the replays of those that could be captured."""
    if reporter.finished(f"time {which} {mode}"):
        return
    graphs = {}
    for contestant, call in never_waiting(reporter, which, calls, "in a graph").items():
        graph = _capture(reporter, f"{which} {contestant.id}", mode, call, each)
        if graph is not None:
            graphs[contestant] = graph
    if graphs:
        reporter.attempt(f"time {which} {mode}", partial(time_calls, which, graphs, mode, each))
    graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()


def never_waiting(
    reporter: Reporter, which: str, calls: Mapping[Contestant, Call], mode: str
) -> dict[Contestant, Call]:
    """The calls that can be enqueued before the GPU begins; the others are reported as not run in this mode."""

    def waits(call: Call) -> str:
        try:
            assert_never_waits(call)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return f"it waits for the GPU ({error})"
        return "no"

    ready = {}
    for contestant, call in calls.items():
        who = f"{which} {contestant.id}"
        answer = reporter.attempt(f"waits {who}", partial(waits, call))
        if answer == "no":
            ready[contestant] = call
        elif answer is not None:
            reporter.not_run(f"{who} {mode}", answer)
    return ready


def _capture(reporter: Reporter, who: str, mode: str, call: Call, each: int) -> Graphed | None:
    def capture() -> Graphed:
        graphed = Graphed(call, each)
        assert_replays(graphed, call())
        return graphed

    return reporter.attempt(f"{mode} {who}", capture, kept=False, spoils=True)


def assert_replays(graphed: Graphed, expected: object) -> None:
    """A replay computes: a kernel on the wrong stream would be left out of the graph, and seem very fast."""
    written, wanted = tensors_of(graphed.result), tensors_of(expected)
    for tensor in written.values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else NO_RESULT)
    graphed()
    for name, tensor in written.items():
        error, largest = (tensor.double() - wanted[name]).abs().max().item(), wanted[name].abs().max().item()
        if not error <= REPLAY_TOLERANCE * largest:  # also true for NaN
            raise AssertionError(f"a replay's {name} differs by {error:.3g} where the largest entry is {largest:.3g}")


def tensors_of(result: Any) -> dict[str, Tensor]:
    if isinstance(result, list):
        return {f"output {number}": tensor for number, tensor in enumerate(result)}
    return result.named() if isinstance(result, Result) else {"output": result}
