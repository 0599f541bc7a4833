"""Measure deformable attention; each public function here is a part of the GPU suite, run by `isolated`."""

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
from benchmarks.attention.stage import BOTH, AttentionStage, baseline
from benchmarks.attention.workloads import OPS
from benchmarks.gpu import timing
from benchmarks.gpu.graphs import modes as graph_modes
from benchmarks.gpu.graphs import tensors_of
from benchmarks.gpu.isolated import Reporter
from benchmarks.gpu.timing import CALL, KERNELS, Calls, present
from benchmarks.measure.race import Call, race, stopwatch_for
from benchmarks.measure.results import times
from benchmarks.measure.stage import Contestant
from dino_kernels.testing import DTYPES, Case
from dino_kernels.testing.accuracy import largest, rms

Inputs = dict[str, Any]
FUSED = "fused_ms_deform_attn"
# A separate part, because compiling takes long: whom the compiled reference is compared with.
WITH_COMPILED = ("cuda", "triton", COMPILED)


@functools.cache
def implementations() -> dict[str, Implementation]:
    """Return everyone of `pytest benchmarks/`, and the compiled reference."""
    return peers.implementations() | {COMPILED: peers.compiled_reference()}


def line_up(dtype: str, names: Sequence[str] | None = None) -> list[Contestant]:
    """Return the float32 reference and everyone or `names`; the original op's float32 stands in for its 16 bit."""
    sixteen_bit = dtype in ("bf16", "fp16")
    if names is None:
        names = [name for name in implementations() if name not in ("reference", COMPILED)]
    return [baseline(dtype), *(_contestant(n, "fp32" if sixteen_bit and n == "original" else dtype) for n in names)]


def _contestant(name: str, dtype: str) -> Contestant:
    return Contestant(name, dtype, implementations()[name].ours)


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
    """Time everyone or `names`, also without launches if `kernels`; measure peak memory."""
    stage = AttentionStage(op, case, device, implementations())

    def memory(calls: Calls) -> None:
        for contestant, call in calls.items():
            row = {"kind": "memory", **stage.about(contestant)}
            reporter.attempt(f"memory {contestant.id}", partial(_memory_row, row, call))

    modes = (CALL, KERNELS) if kernels else (CALL,)
    timing.speed(
        reporter, stage, line_up(dtype, names), seconds, laps, modes=modes, graphs=graph_modes(case), also=memory
    )


def _memory_row(row: dict[str, Any], call: Callable[[], Any]) -> list[dict[str, Any]]:
    return [row | {f"{name}_mib": size for name, size in peak_on_cuda(call).items()}]


def accuracy(reporter: Reporter, case: Case, dtype: str, device: str) -> None:
    """Measure grad_value at the coarsest level against float64, in roundings of the exact gradient to `dtype`."""
    height, width = case.shapes[-1]
    rows = slice(case.S - height * width, case.S)
    rounding = torch.finfo(DTYPES[dtype]).eps / 2

    def coarsest(stage: AttentionStage, contestant: Contestant) -> Tensor:
        grad_output = stage.grad_output(dtype).to(DTYPES[contestant.dtype])
        implementation, inputs = implementations()[contestant.implementation], stage.inputs(contestant.dtype)
        return gate.forward_backward(implementation, stage.op, inputs, grad_output).grads["value"][:, rows]

    def error_of(stage: AttentionStage, exact: Tensor, contestant: Contestant) -> list[dict[str, Any]]:
        got = coarsest(stage, contestant).double()
        norms = {"rms_roundings": rms, "max_roundings": largest}
        errors = {name: round(norm(got - exact) / (rounding * norm(exact)), 3) for name, norm in norms.items()}
        return [{"kind": "accuracy", **stage.about(contestant), **errors}]

    for op in OPS:
        stage = AttentionStage(op, case, device, implementations())
        drawn = stage.inputs(dtype)
        # The same numbers for everyone; other parts draw new ones for each dtype.
        stage.inputs = functools.cache(lambda other, drawn=drawn: _cast(drawn, DTYPES[other]))
        exact = coarsest(stage, _contestant("reference", "fp64"))
        for contestant in present(reporter, stage, [_contestant("reference", dtype), *line_up(dtype)[1:]]):
            reporter.attempt(f"accuracy {op} {contestant.id}", partial(error_of, stage, exact, contestant))


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Convert to `dtype`; positions stay float32 or become float64, as the public functions take them."""
    cast = dict(inputs)
    for name, argument in inputs.items():
        if isinstance(argument, Tensor) and argument.is_floating_point():
            sixteen_bit = argument.dtype == inputs["value"].dtype != torch.float32
            into = dtype if sixteen_bit or dtype == torch.float64 else argument.dtype
            cast[name] = argument.detach().to(into).requires_grad_(argument.requires_grad)
    return cast


def saved(reporter: Reporter, case: Case, dtype: str, device: str) -> None:
    """Measure what the forward of one encoder layer keeps for its backward, in distinct storages."""
    for levels in (1, case.L):
        stage = AttentionStage(FUSED, case, device, implementations())

        def inputs_of(dtype: str, drawn: Callable[[str], Inputs] = stage.inputs, levels: int = levels) -> Inputs:
            # Without padding a query has one reference point, the same at every level.
            return drawn(dtype) | {"reference_points": drawn(dtype)["reference_points"][:, :, :levels].clone()}

        stage.inputs = functools.cache(inputs_of)
        for contestant in present(reporter, stage, line_up(dtype)):
            run = implementations()[contestant.implementation].run
            row = {"kind": "saved", "reference_levels": levels, **stage.about(contestant)}
            call = partial(run, FUSED, stage.inputs(contestant.dtype))
            reporter.attempt(f"saved {contestant.id} with {levels}", partial(_saved_row, row, call))


def _saved_row(row: dict[str, Any], call: Callable[[], Tensor]) -> list[dict[str, Any]]:
    return [row | {"megabytes": round(saved_bytes(call) / 1e6, 2)}]


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Return the bytes in distinct storages that autograd saves during `call`."""
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
    """Time our kernels with deterministic algorithms, with and without filling new tensors."""
    stage = AttentionStage(FUSED, case, device, implementations())

    def compare(contestant: Contestant) -> list[dict[str, Any]]:
        call = stage.call(BOTH, contestant)
        calls = {
            "default": call,
            "deterministic": partial(_deterministically, call, True),
            "deterministic, new tensors not filled": partial(_deterministically, call, False),
        }
        first, second = (tensors_of(calls["deterministic"]()) for _ in range(2))
        repeatable = all(torch.equal(first[name], second[name]) for name in first)
        timings = race(calls, stopwatch_for(device), seconds, laps)
        row = {"kind": "deterministic", **stage.about(contestant), "repeatable": repeatable}
        usual = median(timings["default"].samples)
        return [
            row | {"mode": mode, **times(timing), "ratio": round(median(timing.samples) / usual, 3)}
            for mode, timing in timings.items()
        ]

    for contestant in present(reporter, stage, [_contestant(name, dtype) for name in ("cuda", "triton", "cpu")]):
        reporter.attempt(f"deterministic {contestant.id}", partial(compare, contestant))


def _deterministically(call: Call, fill: bool) -> object:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
