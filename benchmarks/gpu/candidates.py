"""What the GPU suite measures of kernels that stand side by side until a GPU has decided: each, on the same calls."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.attention import gate
from benchmarks.attention.candidates import Candidate, candidates, chosen
from benchmarks.attention.peers import implementations
from benchmarks.attention.stage import Contestant, call_of
from benchmarks.gpu.graphs import KERNELS, time_graphs
from benchmarks.gpu.isolated import Reporter
from benchmarks.measure.race import Call, Timing, race, stopwatch_for
from benchmarks.measure.results import times
from dino_kernels.testing import Case

# The pass in which a direction's kernel runs.
PASS_OF = {"forward": "forward", "backward": "forward+backward"}


def speed(reporter: Reporter, op: str, case: Case, dtype: str, device: str, seconds: float, laps: int) -> None:
    """Check every candidate and time it, without launches and in a CUDA graph."""
    backend = implementations()["cuda" if device == "cuda" else "cpu"]
    inputs = gate.training_inputs(op, case, dtype, device)
    reason = backend.unsupported(op, inputs)
    if reason is None and not candidates():
        reason = "the CUDA library has one kernel for each call"
    if reason is not None:
        reporter.not_run("candidates", reason)
        return
    grad_output = gate.output_gradient(case, dtype, device)
    reference = gate.forward_backward(implementations()["reference"], op, inputs, grad_output)

    def check(candidate: Candidate) -> str:
        with chosen(candidate):
            gate.assert_right_in_miniature(backend, op, case, dtype, device)
            gate.assert_right_at_full_size(backend, op, case, dtype, inputs, grad_output, reference)
        return "right"

    def call(candidate: Candidate) -> Call:
        timed = call_of(PASS_OF[candidate.direction], backend, op, inputs, grad_output)

        def with_it() -> object:
            with chosen(candidate):
                return timed()

        return with_it

    right = [c for c in candidates() if reporter.attempt(f"check {_name(c)}", partial(check, c)) is not None]
    for direction, which in PASS_OF.items():
        calls = {Contestant(_name(c), dtype): call(c) for c in right if c.direction == direction}
        names = {_name(c): c.name for c in right}

        def rows(
            which: str, calls: dict[Contestant, Call], mode: str, each: int = 1, direction=direction, names=names
        ) -> list[dict[str, Any]]:
            timings: dict[Contestant, Timing] = race(calls, stopwatch_for(device, mode != "call"), seconds, laps)
            about = {"kind": "candidate", "workload": case.id, "op": op, "direction": direction, "pass": which}
            return [
                {**about, "mode": mode, "candidate": names[c.implementation], "dtype": dtype, **times(t.per_call(each))}
                for c, t in timings.items()
            ]

        if not calls:
            continue
        mode = KERNELS if device == "cuda" else "call"
        reporter.attempt(f"time {which} {mode} of {direction}", partial(rows, which, calls, mode))
        if device == "cuda":
            time_graphs(reporter, which, "graph", 1, calls, rows)


def _name(candidate: Candidate) -> str:
    return f"cuda-{candidate.direction}-{candidate.name}"
