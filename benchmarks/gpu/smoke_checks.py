"""Define the checks of the smoke run, each run by `isolated` in its own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import dino_kernels
from benchmarks.attention import gate
from benchmarks.attention.peers import implementations
from benchmarks.attention.workloads import OPS
from benchmarks.gpu import sanitize
from benchmarks.gpu.graphs import Graphed, assert_never_waits, assert_replays
from benchmarks.gpu.isolated import Part, Reporter
from benchmarks.gpu.tools import find
from benchmarks.measure import tools
from benchmarks.measure.race import Call
from dino_kernels import hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.testing import CASES, MATCHING_CASES, Case, assignment_costs, matching_inputs, sample_inputs

# Tiles, rows, the common layouts of samples, channels without a specialised kernel, borders.
NAMES = ("encoder_masked", "decoder", "rtdetr", "levels_5", "channels_36", "hostile")
FEW_NAMES = ("encoder_masked", "decoder")
# Large on an H100 as it is: more than 1024 threads for each of 132 multiprocessors, also in 16 bit.
LEVELS = ((40, 60), (20, 30), (10, 15), (5, 8))
NATURALLY_LARGE = Case("naturally_large", 2, 3190, 8, 32, LEVELS, (4, 4, 4, 4), mask=True, layout="local")
SANITIZER_S = 100.0


def checks(device: str) -> list[Part]:
    """Return every check, the longest first."""
    on_gpu = device == "cuda"
    where = {"backend": "cuda" if on_gpu else "cpu", "device": device}

    def on_gpu_only(name: str, check: Callable[..., None], limit_s: float, arguments: dict[str, Any]) -> Part:
        if on_gpu:
            return Part(name, check, arguments, limit_s=limit_s)
        return Part(name, not_run, {"name": name, "device": device})

    parts = [
        on_gpu_only(f"{tool} of tiles", sanitizer, SANITIZER_S + 5, {"tool": tool, "device": device})
        for tool in ("racecheck", "memcheck")
    ]
    parts += [on_gpu_only("Triton attention bf16", triton_attention, 90.0, {"device": device})]
    parts += [on_gpu_only("Triton matching", triton_matching, 90.0, {"device": device})]
    parts += [Part("libraries", libraries, where)]
    large = NATURALLY_LARGE if on_gpu else _named("encoder_masked")
    tiles = [_named(name) for name in ("encoder", *sanitize.TILES)]

    def attention_part(name: str, dtype: str, cases: Sequence[Case], **others: Any) -> Part:
        return Part(f"{name} {dtype}", attention, {**where, "dtype": dtype, "cases": cases, **others})

    for dtype in ("fp32", "bf16"):
        for size, count in (("large", sanitize.LARGE), ("small", sanitize.SMALL)):
            cases = [_named(name) for name in NAMES]
            parts.append(attention_part(f"attention {size}", dtype, cases, multiprocessors=count))
        parts.append(attention_part("attention tiles", dtype, tiles, multiprocessors=sanitize.LARGE))
        parts.append(attention_part("attention as it comes", dtype, [large]))
        few = [_named(name) for name in FEW_NAMES]
        parts.append(attention_part("deterministic", dtype, few, deterministic=True))
    parts += [
        Part("matching_cost and hungarian_match", matching, where),
        Part("linear_sum_assignment", assignment, where),
        on_gpu_only("CUDA graph", graph, 60.0, where),
    ]
    return parts


def not_run(reporter: Reporter, name: str, device: str) -> None:
    reporter.not_run(name, f"it needs a CUDA device; this is {device}")


def libraries(reporter: Reporter, backend: str, device: str) -> None:
    """Check that the backend accepts a call of each op, and that the first call of a process works."""
    for op in OPS:
        inputs = sample_inputs(op, _named("decoder_few_queries"), torch.float32, device)
        reporter.attempt(f"explain {op}", partial(_accepted, getattr(dino_kernels, op), backend, inputs))
    matching = matching_inputs(MATCHING_CASES[0].small(), torch.float32, device)
    for function in (matching_cost, hungarian_match):
        reporter.attempt(f"explain {function.__name__}", partial(_accepted, function, backend, matching))
    cost = {"cost": torch.rand(2, 3, 5, device=device)}
    reporter.attempt("explain linear_sum_assignment", partial(_accepted, linear_sum_assignment, backend, cost))


def _accepted(function: Any, backend: str, arguments: dict[str, Any]) -> str:
    sanitize.require(function, backend, "", **arguments)
    function(**arguments, backend=backend)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return "accepted"


def attention(
    reporter: Reporter,
    backend: str,
    device: str,
    dtype: str,
    cases: Sequence[Case],
    multiprocessors: int | None = None,
    deterministic: bool = False,
    ops: Sequence[str] = OPS,
) -> None:
    """Check forward and backward by the tolerance rule, and if deterministic that two runs have the same bits.

    Args:
        multiprocessors: use the kernels of a GPU of this size; None: those of this GPU.
    """

    def check(op: str, case: Case) -> str:
        size = nullcontext() if multiprocessors is None else sanitize.sized(backend, multiprocessors)
        with size:
            runs = 2 if deterministic else 1
            sanitize.check_attention(op, case, dtype, backend, device, device, deterministic, runs)
        return "accurate"

    for case in cases:
        for op in ops:
            reporter.attempt(f"{op} {case.name}", partial(check, op, case))


def matching(reporter: Reporter, backend: str, device: str) -> None:
    """Check costs by the tolerance and matches by the reference's bits."""
    for dtype in ("fp32", "bf16"):
        reporter.attempt(f"matching {dtype}", partial(sanitize.matching, backend, device, (dtype,)))


def assignment(reporter: Reporter, backend: str, device: str) -> None:
    """Check assignments by the reference's bits."""
    reporter.attempt("assignment", partial(sanitize.assignment, backend, device))


def graph(reporter: Reporter, backend: str, device: str) -> None:
    """Check that no call waits for the GPU and that a captured call replays: all kernels are on its stream."""
    inputs = sample_inputs(OPS[1], _named("encoder"), torch.bfloat16, device)
    implementation = implementations()[backend]
    grad_output = torch.ones_like(gate.forward(implementation, OPS[1], inputs))
    predictions = matching_inputs(MATCHING_CASES[0].small(), torch.float32, device)
    steps: dict[str, Call] = {
        "attention": partial(gate.forward_backward, implementation, OPS[1], inputs, grad_output),
        "matching": partial(matching_cost, **predictions, backend=backend),
    }

    def check(call: Call) -> str:
        assert_never_waits(call)
        assert_replays(Graphed(call), call())
        return "replays"

    for name, call in steps.items():
        reporter.attempt(name, partial(check, call), spoils=True)


def triton_attention(reporter: Reporter, device: str) -> None:
    """Check one kind of call by the Triton kernels, forward and backward."""
    os.environ["DINO_KERNELS_TRITON_TUNE"] = "0"  # compiling one configuration takes half the time
    attention(reporter, "triton", device, "bf16", [_named("encoder_masked")], ops=OPS[1:])


def triton_matching(reporter: Reporter, device: str) -> None:
    """Check an assignment by the Triton kernels by the reference's bits."""

    def check() -> str:
        cost = assignment_costs(sanitize.ASSIGNMENT_CASES[0].small(), torch.float32)
        found = linear_sum_assignment(cost.to(device), full_output=True, backend="triton")
        expected = linear_sum_assignment(cost, full_output=True, backend="reference")
        sanitize.assert_same_assignment(found, expected, "linear_sum_assignment by triton")
        return "same bits"

    reporter.attempt("linear_sum_assignment", check)


def sanitizer(reporter: Reporter, tool: str, device: str) -> None:
    """Run the kernels of an encoder's tiles under one tool of compute-sanitizer."""
    path = find(reporter, device, "compute-sanitizer")
    if path is None:
        return
    command = [path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitize", "--tiles"]
    # PyTorch's allocator cuts large blocks, and memcheck finds nothing between the pieces.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    reporter.attempt(tool, lambda: tools.run(command, SANITIZER_S, environment).strip().splitlines()[-1])


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
