"""Count what a step does: operations, bytes that they allocate, bytes kept for the backward; and time in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Counts:
    """What one forward did."""

    operations: int  # that compute or allocate; views are free
    allocated: int  # bytes of new tensors, each counted when it is made
    saved: int  # bytes kept for the backward, without the inputs


class _Counter(TorchDispatchMode):
    """Count operations whose result is new memory, and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.allocated = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = {_address(x): x for x in tree_leaves(result) if isinstance(x, Tensor) and _address(x) not in given}
        in_place = function._schema.is_mutable
        self.operations += bool(new) or in_place
        self.allocated += sum(x.untyped_storage().nbytes() for x in new.values())
        return result


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count(call: Callable[[], Tensor], inputs: list[Tensor]) -> Counts:
    """Run a forward and count. `inputs` are not counted as saved."""
    kept: dict[int, int] = {}
    mine = {_address(x) for x in inputs}

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in mine:
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), _Counter() as counter:
        output = call()  # alive until the end: freed memory could be counted as another tensor's
    del output
    return Counts(counter.operations, counter.allocated, sum(kept.values()))


def in_turns(calls: dict[str, Callable[[], object]], device: str = "cpu", laps: int = 5) -> dict[str, float]:
    """Return the median of each call's seconds, A B C, C B A, ...

    On a CPU these are seconds of this process, which other processes do not lengthen much; one thread is assumed.
    """
    order = list(calls)
    times: dict[str, list[float]] = {name: [] for name in order}
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for lap in range(laps + 1):
        for name in order:
            wait()
            start = clock()
            calls[name]()
            wait()
            if lap:  # the first is a warm-up
                times[name].append(clock() - start)
        order.reverse()
    return {name: median(each) for name, each in times.items()}


def size(count_of_bytes: float) -> str:
    """Return bytes as text: "1.9 GB", "26 MB", "0"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_of_bytes >= factor:
            number = count_of_bytes / factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{count_of_bytes:.0f} B" if count_of_bytes else "0"


# Methods that read a tensor's numbers on the host; on a GPU each copies and waits.
HOST_READS = {"cpu", "item", "tolist", "numpy", "__array__", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class _HostReads(TorchFunctionMode):
    """Count calls of HOST_READS, as if every tensor were on a GPU until it is copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.on_host: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in HOST_READS and _address(args[0]) not in self.on_host:
            self.count += 1
            if name in ("cpu", "numpy", "__array__"):
                self.on_host.add(_address(args[0]))
        return function(*args, **(kwargs or {}))


def host_reads(call: Callable[[], object]) -> int:
    """Return how often a call reads a tensor on the host; what happens inside compiled code is not seen."""
    with _HostReads() as reads:
        call()
    return reads.count
