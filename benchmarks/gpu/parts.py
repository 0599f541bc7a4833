"""What the GPU suite measures; each function here is a part of it, run by `isolated`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import gate, peers
from benchmarks.attention.memory import peak_on_cuda
from benchmarks.attention.peers import COMPILED, Implementation
from benchmarks.attention.stage import PASSES, Contestant, baseline, call_of
from benchmarks.attention.workloads import OPS
from benchmarks.gpu.graphs import KERNELS, modes, never_waiting, tensors_of, time_graphs
from benchmarks.gpu.isolated import Reporter
from benchmarks.measure.race import Call, Timing, race, stopwatch_for
from benchmarks.measure.results import times
from dino_kernels.testing import DTYPES, Case, Result
from dino_kernels.testing.accuracy import largest, rms

LONGEST_MESSAGE = 400
Inputs = dict[str, Any]
# A part of its own, because it compiles for long: with whom it is compared.
WITH_COMPILED = ("cuda", "triton", COMPILED)


@functools.cache
def implementations() -> dict[str, Implementation]:
    """Everyone of `pytest benchmarks/`, and the compiled reference."""
    return peers.implementations() | {COMPILED: peers.compiled_reference()}


def line_up(dtype: str, names: Sequence[str] | None = None) -> list[Contestant]:
    """Everyone or `names`, with the float32 reference; the original op has no 16 bit, so its float32 stands in."""
    sixteen_bit = dtype in ("bf16", "fp16")
    if names is None:
        names = [name for name in implementations() if name not in ("reference", COMPILED)]
    everyone = [Contestant(name, "fp32" if sixteen_bit and name == "original" else dtype) for name in names]
    return [baseline(dtype), *everyone]


def present(reporter: Reporter, op: str, everyone: list[Contestant], inputs_of: Callable[[str], Inputs]):
    """Those who can run the call; the others are reported with their reason."""
    for contestant in everyone:
        reason = implementations()[contestant.implementation].unsupported(op, inputs_of(contestant.dtype))
        if reason is None:
            yield contestant, implementations()[contestant.implementation]
        else:
            reporter.not_run(contestant.id, reason)


def speed(
    reporter: Reporter,
    op: str,
    case: Case,
    dtype: str,
    device: str,
    seconds: float,
    laps: int,
    names: Sequence[str] | None = None,
    kernels: bool = False,
) -> None:
    """Time of everyone or of `names`, per call, without launches where `kernels`, in a CUDA graph; peak memory."""
    inputs_of = functools.cache(lambda dtype: gate.training_inputs(op, case, dtype, device))
    grad_of = functools.cache(lambda dtype: gate.output_gradient(case, dtype, device))
    reference = functools.cache(
        lambda dtype: gate.forward_backward(implementations()["reference"], op, inputs_of(dtype), grad_of(dtype))
    )
    racers, notes = {}, {}
    for contestant, implementation in present(reporter, op, line_up(dtype, names), inputs_of):
        arguments = op, case, inputs_of(contestant.dtype), grad_of(contestant.dtype)
        check = partial(_check, implementation, contestant, *arguments, reference, device)
        verdict = reporter.attempt(f"check {contestant.id}", check)
        if verdict is not None:
            racers[contestant], notes[contestant] = implementation, verdict
    reference.cache_clear()
    about = {"workload": case.id, "op": op}

    def call(which: str, contestant: Contestant, implementation: Implementation) -> Call:
        dtype = contestant.dtype
        return named(contestant, call_of(which, implementation, op, inputs_of(dtype), grad_of(dtype)))

    def calls(which: str) -> dict[Contestant, Call]:
        return {contestant: call(which, contestant, implementation) for contestant, implementation in racers.items()}

    def rows(which: str, mode: str, timings: dict[Contestant, Timing]) -> list[dict[str, Any]]:
        return [
            {"kind": "speed", **about, "pass": which, "mode": mode, **_about(c), **times(timing), **notes[c]}
            for c, timing in timings.items()
        ]

    def time_calls(which: str, calls: dict[Contestant, Call], mode: str, each: int = 1) -> list[dict[str, Any]]:
        timings = race(calls, stopwatch_for(device, mode != "call"), seconds, laps)
        return rows(which, mode, {contestant: timing.per_call(each) for contestant, timing in timings.items()})

    for which in PASSES if racers else ():
        reporter.attempt(f"time {which}", lambda which=which: time_calls(which, calls(which), "call"))
        if kernels and device == "cuda":
            ready = never_waiting(reporter, which, calls(which), KERNELS)
            if ready:
                reporter.attempt(f"time {which} {KERNELS}", partial(time_calls, which, ready, KERNELS))
    if device != "cuda":
        reporter.not_run("CUDA graphs and peak memory", f"they need a CUDA device; this is {device}")
        return
    for contestant, timed in calls("forward+backward").items():
        row = {"kind": "memory", **about, **_about(contestant)}
        reporter.attempt(f"memory {contestant.id}", partial(_memory_row, row, timed))
    # Last, because a capture that fails spoils the process.
    for which in PASSES:
        for mode, each in modes(case).items():
            time_graphs(reporter, which, mode, each, calls(which), time_calls)


def _memory_row(row: dict[str, Any], call: Callable[[], Any]) -> list[dict[str, Any]]:
    return [row | {f"{name}_mib": size for name, size in peak_on_cuda(call).items()}]


def _about(contestant: Contestant) -> dict[str, Any]:
    ours = implementations()[contestant.implementation].ours
    return {"implementation": contestant.implementation, "dtype": contestant.dtype, "ours": ours}


def _check(
    implementation: Implementation,
    contestant: Contestant,
    op: str,
    case: Case,
    inputs: Inputs,
    grad_output: Tensor,
    reference: Callable[[str], Result],
    device: str,
) -> dict[str, str]:
    """A wrong kernel of ours raises and gets no speed; a wrong peer is noted. All have run at full size behind this."""
    if contestant.implementation == "reference":
        gate.forward_backward(implementation, op, inputs, grad_output)
        return {}
    note = {}
    try:
        gate.assert_right_in_miniature(implementation, op, case, contestant.dtype, device)
    except AssertionError as error:
        if implementation.ours:
            raise
        note = {"inaccurate": str(error)[:LONGEST_MESSAGE]}
    if implementation.ours:
        wanted = reference(contestant.dtype)
        gate.assert_right_at_full_size(implementation, op, case, contestant.dtype, inputs, grad_output, wanted)
    else:
        gate.forward_backward(implementation, op, inputs, grad_output)
    if device == "cuda":
        torch.cuda.synchronize()  # an illegal access is this contestant's, not the next one's
    return note


def named(contestant: Contestant, call: Call) -> Call:
    def named() -> object:
        try:
            return call()
        except Exception as error:
            raise RuntimeError(f"{contestant.id}: {error}") from error

    return named


def accuracy(reporter: Reporter, case: Case, dtype: str, device: str) -> None:
    """Error of grad_value at the coarsest level against float64, in roundings of the exact gradient to `dtype`."""
    height, width = case.shapes[-1]
    rows = slice(case.S - height * width, case.S)
    rounding = torch.finfo(DTYPES[dtype]).eps / 2

    for op in OPS:
        inputs = gate.training_inputs(op, case, dtype, device)
        grad_output = gate.output_gradient(case, dtype, device)
        exact = _coarsest(implementations()["reference"], op, _cast(inputs, torch.float64), grad_output.double(), rows)
        everyone = [Contestant("reference", dtype), *line_up(dtype)[1:]]
        cast = functools.cache(lambda dtype, inputs=inputs: _cast(inputs, DTYPES[dtype]))

        def error_of(contestant, implementation, op=op, cast=cast, grad_output=grad_output, exact=exact):
            grad = grad_output.to(DTYPES[contestant.dtype])
            got = _coarsest(implementation, op, cast(contestant.dtype), grad, rows)
            errors = {
                f"{norm}_roundings": round(measure(got.double() - exact) / (rounding * measure(exact)), 3)
                for norm, measure in (("rms", rms), ("max", largest))
            }
            return [{"kind": "accuracy", "workload": case.id, "op": op, **_about(contestant), **errors}]

        for contestant, implementation in present(reporter, op, everyone, cast):
            reporter.attempt(f"accuracy {op} {contestant.id}", partial(error_of, contestant, implementation))


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same numbers in `dtype`; positions stay float32 or become float64, as the public functions take them."""
    cast = dict(inputs)
    for name, argument in inputs.items():
        if isinstance(argument, Tensor) and argument.is_floating_point():
            sixteen_bit = argument.dtype == inputs["value"].dtype != torch.float32
            wanted = dtype if sixteen_bit or dtype == torch.float64 else argument.dtype
            cast[name] = argument.detach().to(wanted).requires_grad_(argument.requires_grad)
    return cast


def _coarsest(implementation: Implementation, op: str, inputs: Inputs, grad_output: Tensor, rows: slice) -> Tensor:
    return gate.forward_backward(implementation, op, inputs, grad_output).grads["value"][:, rows]


def saved(reporter: Reporter, case: Case, dtype: str, device: str) -> None:
    """Bytes that the forward of one encoder layer keeps for its backward, in distinct storages."""
    op = "fused_ms_deform_attn"

    def inputs_with(levels: int, dtype: str) -> Inputs:
        inputs = gate.training_inputs(op, case, dtype, device)
        # Without padding a query has one reference point, the same at every level.
        return inputs | {"reference_points": inputs["reference_points"][:, :, :levels].clone()}

    for levels in (1, case.L):
        inputs_of = functools.cache(partial(inputs_with, levels))
        for contestant, implementation in present(reporter, op, line_up(dtype), inputs_of):
            row = {"kind": "saved", "workload": case.id, "op": op, "reference_levels": levels, **_about(contestant)}
            reporter.attempt(
                f"saved {contestant.id} with {levels}",
                partial(_saved_row, row, partial(implementation.run, op, inputs_of(contestant.dtype))),
            )


def _saved_row(row: dict[str, Any], call: Callable[[], Tensor]) -> list[dict[str, Any]]:
    return [row | {"megabytes": round(saved_bytes(call) / 1e6, 2)}]


def saved_bytes(call: Callable[[], Tensor]) -> int:
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # kept, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def deterministic(reporter: Reporter, case: Case, dtype: str, device: str, seconds: float, laps: int) -> None:
    """What deterministic algorithms cost our kernels' forward and backward; with and without filling new tensors."""
    op = "fused_ms_deform_attn"
    inputs_of = functools.cache(lambda dtype: gate.training_inputs(op, case, dtype, device))
    everyone = [Contestant(name, dtype) for name in ("cuda", "triton", "cpu")]
    grad_output = gate.output_gradient(case, dtype, device)

    def compare(implementation: Implementation, contestant: Contestant) -> list[dict[str, Any]]:
        call = call_of("forward+backward", implementation, op, inputs_of(dtype), grad_output)
        calls = {
            "default": call,
            "deterministic": partial(_deterministically, call, True),
            "deterministic, new tensors not filled": partial(_deterministically, call, False),
        }
        first, second = (tensors_of(calls["deterministic"]()) for _ in range(2))
        repeatable = all(torch.equal(first[name], second[name]) for name in first)
        timings = race(calls, stopwatch_for(device), seconds, laps)
        row = {"kind": "deterministic", "workload": case.id, "op": op, **_about(contestant), "repeatable": repeatable}
        usual = median(timings["default"].samples)
        return [
            row | {"mode": mode, **times(timing), "ratio": round(median(timing.samples) / usual, 3)}
            for mode, timing in timings.items()
        ]

    for contestant, implementation in present(reporter, op, everyone, inputs_of):
        reporter.attempt(f"deterministic {contestant.id}", partial(compare, implementation, contestant))


def _deterministically(call: Call, fill: bool) -> object:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
