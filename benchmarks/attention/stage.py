"""One workload and op on stage: who may take part, whose result is right, and the race between those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.attention import gate
from benchmarks.attention.peers import Implementation, implementations
from benchmarks.attention.workloads import Effort
from benchmarks.measure.race import Call, Timing, race, stopwatch_for
from dino_kernels.testing import Case

PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Contestant:
    implementation: str
    dtype: str

    @property
    def id(self) -> str:
        return f"{self.implementation}-{self.dtype}"


def baseline(dtype: str) -> Contestant:
    """Whom a contestant is measured against.

    In 16 bit the reference computes in float32 and converts, so the float32 reference is the stricter one.
    """
    return Contestant("reference", "fp64" if dtype == "fp64" else "fp32")


def contestants(names: Sequence[str], dtypes: Sequence[str]) -> list[Contestant]:
    everyone = [Contestant(name, dtype) for name in names for dtype in dtypes]
    return [c for c in everyone if c.implementation != "reference" or c == baseline(c.dtype)]


@dataclass(frozen=True)
class Outcome:
    """What came of everyone: a refusal, an error in the result, times, or a peer's error and its times."""

    refusals: dict[Contestant, str]
    errors: dict[Contestant, str]
    timings: dict[str, dict[Contestant, Timing]]  # by pass


def measure(op: str, case: Case, everyone: Sequence[Contestant], effort: Effort, device: str) -> Outcome:
    """Check everyone, then time those who pass. A wrong peer is timed and marked; a wrong kernel of ours is not."""
    known = implementations()
    dtypes = {c.dtype for c in everyone}
    inputs = {dtype: gate.training_inputs(op, case, dtype, device) for dtype in dtypes}
    grads = {dtype: gate.output_gradient(case, dtype, device) for dtype in dtypes}
    refusals, errors = {}, {}
    references = {}
    for contestant in everyone:
        implementation, dtype = known[contestant.implementation], contestant.dtype
        refusal = implementation.unsupported(op, inputs[dtype])
        if refusal is not None:
            refusals[contestant] = refusal
            continue
        if contestant.implementation == "reference":
            continue
        try:
            gate.assert_right_in_miniature(implementation, op, case, dtype, device)
            if implementation.ours:
                if dtype not in references:
                    references[dtype] = gate.forward_backward(known["reference"], op, inputs[dtype], grads[dtype])
                full_size = inputs[dtype], grads[dtype], references[dtype]
                gate.assert_right_at_full_size(implementation, op, case, dtype, *full_size)
        except AssertionError as error:
            errors[contestant] = str(error)
        except Exception as error:  # must not end the others' race; ours fails its own test with it
            (errors if implementation.ours else refusals)[contestant] = f"{type(error).__name__}: {error}"
    references.clear()
    racers = [c for c in everyone if c not in refusals and not (c in errors and known[c.implementation].ours)]
    timings = {}
    for which in PASSES:
        calls = {c: call_of(which, known[c.implementation], op, inputs[c.dtype], grads[c.dtype]) for c in racers}
        timings[which] = race(calls, stopwatch_for(device), effort.race_s, effort.laps)
    return Outcome(refusals, errors, timings)


def call_of(which: str, implementation: Implementation, op: str, inputs: dict[str, Any], grad_output: Tensor) -> Call:
    """One pass, ready to be timed."""
    if which == "forward":
        return partial(gate.forward, implementation, op, inputs)
    return partial(gate.forward_backward, implementation, op, inputs, grad_output)
