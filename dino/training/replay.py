"""Run a function of tensors many times in the same memory: on a GPU as a CUDA graph, one for each set of shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]


@dataclass
class _Entry:
    inputs: list[Tensor]  # the memory that the function reads
    graph: torch.cuda.CUDAGraph | None = None
    outputs: Sequence[Tensor] = ()


class Replay:
    """Calls a function of tensors on inputs that are copied into memory of its own, the same for equal shapes.

    On a GPU, the first call with certain shapes runs the function, the second captures it as a CUDA graph, and this and
    all later calls replay the graph: one launch in place of all the function's. Whatever else the function reads or
    changes must stay in its place, and nothing in it may depend on values. Elsewhere every call runs the function.

    Args:
        function: from tensors to tensors.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self._entries: dict[Hashable, _Entry] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return the function's results, which later calls leave as they are."""
        shapes = tuple((each.shape, each.dtype) for each in inputs)
        entry = self._entries.get(shapes)
        is_first = entry is None
        if entry is None:
            entry = self._entries[shapes] = _Entry([each.clone() for each in inputs])
        else:
            for own, given in zip(entry.inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
        if entry.inputs[0].device.type != "cuda":
            return list(self.function(*entry.inputs))
        if is_first:
            return list(self._run_aside(entry))
        if entry.graph is None:
            self._capture(entry)
        assert entry.graph is not None
        entry.graph.replay()
        return [each.clone() for each in entry.outputs]

    @property
    def shapes(self) -> int:
        """The number of sets of shapes so far."""
        return len(self._entries)

    def _run_aside(self, entry: _Entry) -> Sequence[Tensor]:
        """Run the function on another stream, as PyTorch demands before a capture."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = self.function(*entry.inputs)
        current.wait_stream(side)
        for each in outputs:
            each.record_stream(current)
        return outputs

    def _capture(self, entry: _Entry) -> None:
        """Capture the function. Graphs share their memory: they run one after the other, and results are copied."""
        entry.graph = torch.cuda.CUDAGraph()
        # Meanwhile a thread of the loader may call CUDA to pin memory.
        with torch.cuda.graph(entry.graph, pool=self._pool, capture_error_mode="thread_local"):
            entry.outputs = self.function(*entry.inputs)
        self._pool = self._pool or entry.graph.pool()
