"""What the smoke run looks at; each function here is a check, run by `isolated` in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

import dino_kernels
from benchmarks.attention import gate
from benchmarks.attention.candidates import LARGE, SMALL, Candidate, candidates, chosen
from benchmarks.attention.peers import implementations
from benchmarks.attention.workloads import OPS
from benchmarks.gpu import sanitize
from benchmarks.gpu.graphs import Graphed, assert_never_waits, assert_replays
from benchmarks.gpu.isolated import Part, Reporter
from benchmarks.measure import tools
from benchmarks.measure.race import Call
from dino_kernels import hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.testing import (
    CASES,
    DTYPES,
    MATCHING_CASES,
    Case,
    assert_result_accurate,
    assert_same_bits,
    assignment_costs,
    matching_inputs,
    sample_inputs,
)

# Tiles, rows, the common layouts of samples, channels that have no kernel of their own, borders.
NAMES = ("encoder_masked", "decoder", "rtdetr", "levels_5", "channels_36", "hostile")
FEW_NAMES = ("encoder_masked", "decoder")
# Large on an H100 as it is: more than 1024 threads for each of 132 multiprocessors, also in 16 bit.
NATURALLY_LARGE = Case(
    "naturally_large",
    2,
    3190,
    8,
    32,
    ((40, 60), (20, 30), (10, 15), (5, 8)),
    (4, 4, 4, 4),
    mask=True,
    layout="local",
)
SANITIZER_S = 100.0


def checks(device: str) -> list[Part]:
    """Every check, those that take longest first."""
    on_gpu = device == "cuda"
    backend = "cuda" if on_gpu else "cpu"
    where = {"backend": backend, "device": device}
    parts = [
        Part(f"{tool} of tiles", sanitizer, {"tool": tool, "device": device}, limit_s=SANITIZER_S + 5)
        for tool in ("racecheck", "memcheck")
    ]
    parts += [Part("Triton attention bf16", triton_attention, {"device": device}, limit_s=90.0)]
    parts += [Part("Triton matching", triton_matching, {"device": device}, limit_s=90.0)]
    parts += [Part("libraries", libraries, where)]
    for dtype in ("fp32", "bf16"):
        for size, count in (("large", LARGE), ("small", SMALL)):
            arguments = {**where, "dtype": dtype, "multiprocessors": count, "names": NAMES}
            parts.append(Part(f"attention {size} {dtype}", attention, arguments))
        if dtype == "bf16" and device == "cuda":
            parts += [
                Part(
                    f"attention {candidate.id} bf16",
                    attention_of,
                    {**where, "direction": candidate.direction, "name": candidate.name},
                )
                for candidate in candidates()
            ]
        parts.append(Part(f"attention as it comes {dtype}", attention_as_it_comes, {**where, "dtype": dtype}))
        parts.append(Part(f"deterministic {dtype}", deterministic, {**where, "dtype": dtype}))
    parts += [
        Part("matching_cost and hungarian_match", matching, where),
        Part("linear_sum_assignment", assignment, where),
        Part("CUDA graph", graph, where),
    ]
    return parts


def libraries(reporter: Reporter, backend: str, device: str) -> None:
    """The backend accepts a call of each op; the first call of a fresh process works."""
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
    reporter: Reporter, backend: str, device: str, dtype: str, multiprocessors: int, names: Sequence[str]
) -> None:
    """Forward and backward within the tolerance, by the kernels of a GPU of this size."""

    def check(op: str, case: Case) -> str:
        with sanitize.sized(backend, multiprocessors):
            return _accurate(op, case, dtype, backend, device)

    for name in names:
        for op in OPS:
            reporter.attempt(f"{op} {name}", partial(check, op, _named(name)))


def attention_of(reporter: Reporter, backend: str, device: str, direction: str, name: str) -> None:
    """Large calls by one of the candidates."""

    def check(op: str, case: Case) -> str:
        with sanitize.sized(backend, LARGE), chosen(Candidate(direction, name)):
            return _accurate(op, case, "bf16", backend, device)

    for case in ("encoder", *sanitize.TILES):
        for op in OPS:
            reporter.attempt(f"{op} {case}", partial(check, op, _named(case)))


def attention_as_it_comes(reporter: Reporter, backend: str, device: str, dtype: str) -> None:
    """The same by the kernels that this GPU gets, for a call that is large on an H100."""
    case = NATURALLY_LARGE if device == "cuda" else _named("encoder_masked")
    for op in OPS:
        reporter.attempt(f"{op} {case.name}", partial(_accurate, op, case, dtype, backend, device))


def _accurate(op: str, case: Case, dtype: str, backend: str, device: str) -> str:
    inputs = sample_inputs(op, case, DTYPES[dtype], device)
    sanitize.require(getattr(dino_kernels, op), backend, case.id, **inputs)
    result = gate.forward_backward(implementations()[backend], op, inputs)
    assert_result_accurate(op, inputs, result, f"{backend} in {dtype}")
    return "accurate"


def deterministic(reporter: Reporter, backend: str, device: str, dtype: str) -> None:
    """With deterministic algorithms results are within the tolerance, and two have the same bits."""

    def check(op: str, case: Case) -> str:
        inputs = sample_inputs(op, case, DTYPES[dtype], device)
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (gate.forward_backward(implementations()[backend], op, inputs) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        named = first.named()
        assert_same_bits(list(named.values()), list(second.named().values()), list(named))
        assert_result_accurate(op, inputs, first, f"{backend} in {dtype}, deterministic")
        return "repeatable and accurate"

    for name in FEW_NAMES:
        for op in OPS:
            reporter.attempt(f"{op} {name}", partial(check, op, _named(name)))


def matching(reporter: Reporter, backend: str, device: str) -> None:
    """Costs within the tolerance, matches with the reference's bits."""
    for dtype in ("fp32", "bf16"):
        reporter.attempt(f"matching {dtype}", partial(sanitize.matching, backend, device, (dtype,)))


def assignment(reporter: Reporter, backend: str, device: str) -> None:
    """Assignments with the reference's bits."""
    reporter.attempt("assignment", partial(sanitize.assignment, backend, device))


def graph(reporter: Reporter, backend: str, device: str) -> None:
    """A captured call replays, which it would not if a kernel ran on another stream; no call waits for the GPU."""
    if device != "cuda":
        reporter.not_run("CUDA graph", f"it needs a CUDA device; this is {device}")
        return
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
    """One kind of call by the Triton kernels, forward and backward."""
    if device != "cuda":
        reporter.not_run("Triton", f"it needs a CUDA device; this is {device}")
        return
    os.environ["DINO_KERNELS_TRITON_TUNE"] = "0"  # compiling one configuration takes half the time
    reporter.attempt("fused encoder", partial(_accurate, OPS[1], _named("encoder_masked"), "bf16", "triton", device))


def triton_matching(reporter: Reporter, device: str) -> None:
    """One call of each matching op by the Triton kernels, with the reference's bits."""
    if device != "cuda":
        reporter.not_run("Triton", f"it needs a CUDA device; this is {device}")
        return

    def check() -> str:
        cost = assignment_costs(sanitize.ASSIGNMENT_CASES[0].small(), torch.float32)
        found = linear_sum_assignment(cost.to(device), full_output=True, backend="triton")
        wanted = linear_sum_assignment(cost, full_output=True, backend="reference")
        sanitize.assert_same_assignment(found, wanted, "linear_sum_assignment by triton")
        return "same bits"

    reporter.attempt("linear_sum_assignment", check)


def sanitizer(reporter: Reporter, tool: str, device: str) -> None:
    """The kernels of an encoder's tiles under one tool of compute-sanitizer."""
    path = tools.find("compute-sanitizer")
    reason = f"it needs a CUDA device; this is {device}" if device != "cuda" else None
    reason = reason or ("compute-sanitizer is not installed" if path is None else None)
    if reason is not None or path is None:
        reporter.not_run(tool, str(reason))
        return
    command = [path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitize", "--tiles"]
    # PyTorch's allocator gives out parts of large blocks, beyond whose ends memcheck finds nothing.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    reporter.attempt(tool, lambda: tools.run(command, SANITIZER_S, environment).strip().splitlines()[-1])


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
