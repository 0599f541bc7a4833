"""Measure the peak memory of one forward and backward, above that of the inputs and the output's gradient."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.attention import gate
from benchmarks.attention.peers import implementations
from benchmarks.attention.workloads import miniature
from dino_kernels.testing import Case, Result

STATUS = Path("/proc/self/status")
MIB = 2**20


def unsupported(device: str) -> str | None:
    if device == "cpu" and not STATUS.exists():
        return f"peak memory on the CPU is read from {STATUS}, which this system does not have"
    return None


def peak_memory(op: str, case: Case, implementation: str, dtype: str, device: str) -> dict[str, float]:
    """Return MiB: `peak`, and `least`, the output and gradients that every implementation must return."""
    if device == "cuda":
        return _on_cuda(op, case, implementation, dtype)
    # Its own process: memory that an earlier call returned to the allocator would be reused unseen. Forked from a
    # server that has imported torch but started no threads, so it costs no second import.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.attention.peers"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(theirs, torch.get_num_threads(), op, case, implementation, dtype))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the process that measures memory ended with exit code {process.exitcode}") from error
    finally:
        process.join()


def _prepare(op: str, case: Case, implementation: str, dtype: str, device: str) -> Callable[[], Result]:
    contestant = implementations()[implementation]
    small = gate.training_inputs(op, miniature(case), dtype, device)
    gate.forward_backward(contestant, op, small)  # thread pools, lazy imports
    inputs = gate.training_inputs(op, case, dtype, device)
    grad_output = torch.ones(
        case.batch, case.queries, case.heads * case.channels, dtype=inputs["value"].dtype, device=device
    )
    return partial(gate.forward_backward, contestant, op, inputs, grad_output)


def _sizes(result: Result, peak: float) -> dict[str, float]:
    least = sum(tensor.numel() * tensor.element_size() for tensor in result.named().values())
    return {"peak": round(peak / MIB, 1), "least": round(least / MIB, 1)}


def _on_cuda(op: str, case: Case, implementation: str, dtype: str) -> dict[str, float]:
    return peak_on_cuda(_prepare(op, case, implementation, dtype, "cuda"))


def peak_on_cuda(call: Callable[[], Result]) -> dict[str, float]:
    """Return `peak` and `least` of a call that has run before, so that it compiles and caches nothing."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return _sizes(result, torch.cuda.max_memory_allocated() - before)


def _in_child(connection: Connection, threads: int, op: str, case: Case, implementation: str, dtype: str) -> None:
    torch.set_num_threads(threads)
    call = _prepare(op, case, implementation, dtype, "cpu")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # glibc keeps freed blocks, and would reuse them unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    result = call()
    connection.send(_sizes(result, _status("VmHWM") - before))


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
