"""Capture calls in CUDA graphs, whose replays take no time for Python and launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.measure.race import Call
from dino_kernels.testing import Case, Result

# A decoder's call is short, and a graph of several shows its time after other calls, with a warm L2.
CALLS_PER_GRAPH = 10
# Of the largest entry. Sums of 16-bit atomics differ by several per cent from one call to the next.
REPLAY_TOLERANCE = 0.25
# Of integers; far from any index.
NO_RESULT = -1_000_000_000


def modes(case: Case) -> dict[str, int]:
    """Return how many calls a graph holds, by the name of the mode."""
    return {"graph": 1} | ({f"graph of {CALLS_PER_GRAPH}": CALLS_PER_GRAPH} if case.queries != case.S else {})


class Graphed:
    """A call captured in a CUDA graph, `times` times in a row; calling this replays the graph.

    `result` is what the captured call returned; every replay writes its tensors again.
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


def assert_never_waits(call: Call) -> object:
    """Return the result of a call; raise if it synchronises with the GPU, which no graph can hold.

    To be checked before a capture, because a capture that fails leaves torch's allocator unfit for the next one.
    """
    call()  # fills what is cached on the host
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_replays(graphed: Graphed, expected: object) -> None:
    """Raise if a replay does not compute: a kernel on the wrong stream is not in the graph, which seems very fast."""
    written, right = tensors_of(graphed.result), tensors_of(expected)
    for tensor in written.values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else NO_RESULT)
    graphed()
    for name, tensor in written.items():
        error, largest = (tensor.double() - right[name]).abs().max().item(), right[name].abs().max().item()
        if not error <= REPLAY_TOLERANCE * largest:  # also true for NaN
            raise AssertionError(f"a replay's {name} differs by {error:.3g} where the largest entry is {largest:.3g}")


def on_gpu(result: object) -> bool:
    """Return whether a call computed anything on a GPU."""
    leaves = tree_leaves(list(tensors_of(result).values()))
    return any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in leaves)


def tensors_of(result: Any) -> dict[str, Tensor]:
    if isinstance(result, list):
        return {f"output {number}": tensor for number, tensor in enumerate(result)}
    return result.named() if isinstance(result, Result) else {"output": result}
