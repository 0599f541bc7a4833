"""Check and time everyone on one stage: per call, without launches, and in CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.graphs import Graphed, assert_never_waits, assert_replays, on_gpu
from benchmarks.gpu.isolated import Reporter
from benchmarks.measure.race import Call, race, stopwatch_for
from benchmarks.measure.results import times
from benchmarks.measure.stage import Contestant, Stage

CALL, KERNELS, GRAPH = "call", "kernels", "graph"
LONGEST_MESSAGE = 400
Calls = dict[Contestant, Call]
Row = dict[str, Any]


def speed(
    reporter: Reporter,
    stage: Stage,
    everyone: Sequence[Contestant],
    seconds: float,
    laps: int,
    kind: str = "speed",
    modes: Sequence[str] = (CALL,),
    graphs: Mapping[str, int] | None = None,
    also: Callable[[Calls], None] | None = None,
) -> None:
    """Time each pass in each of `modes`, then in CUDA graphs; on a CPU only per call.

    Args:
        modes: CALL includes launches; KERNELS hides them.
        graphs: the name of a mode, and how many calls its graph holds; default: one.
        also: measures something else of the calls of the last pass, on a GPU.
    """
    racers: dict[Contestant, dict[str, str]] = {}
    for contestant in present(reporter, stage, everyone):
        note = reporter.attempt(f"check {contestant.id}", partial(_note, stage, contestant))
        if note is not None:
            racers[contestant] = note
    stage.free()

    def calls(which: str) -> Calls:
        return {contestant: named(contestant, stage.call(which, contestant)) for contestant in racers}

    def rows(which: str, timed: Calls, mode: str, each: int = 1) -> list[Row]:
        timings = race(timed, stopwatch_for(stage.device, mode != CALL), seconds, laps)
        about = {"kind": kind, "pass": which, "mode": mode}
        return [
            {**about, **stage.about(c), **times(timing.per_call(each)), **racers[c]} for c, timing in timings.items()
        ]

    on_gpu = stage.device == "cuda"
    if not racers:
        return
    for which in stage.passes:
        for mode in modes if on_gpu else (CALL,):
            ready = calls(which) if mode == CALL else never_waiting(reporter, which, calls(which), mode)
            if ready:
                reporter.attempt(f"time {which} {mode}", partial(rows, which, ready, mode))
    if not on_gpu:
        reporter.not_run("CUDA graphs and memory", f"they need a CUDA device; this is {stage.device}")
        return
    if also is not None:
        also(calls(stage.passes[-1]))
    # Last, because a capture that fails spoils the process.
    for which in stage.passes:
        for mode, each in (graphs or {GRAPH: 1}).items():
            time_graphs(reporter, which, mode, each, calls(which), rows)


def present(reporter: Reporter, stage: Stage, everyone: Sequence[Contestant]) -> list[Contestant]:
    """Return those who can run the call; report the others with their reason."""
    able = []
    for contestant in everyone:
        reason = stage.unsupported(contestant)
        if reason is None:
            able.append(contestant)
        else:
            reporter.not_run(contestant.id, reason)
    return able


def _note(stage: Stage, contestant: Contestant) -> dict[str, str]:
    """Raise for a wrong kernel of ours, which gets no speed; note a wrong peer."""
    try:
        stage.check(contestant)
    except AssertionError as error:
        if contestant.ours:
            raise
        return {"inaccurate": str(error)[:LONGEST_MESSAGE]}
    return {}


def named(contestant: Contestant, call: Call) -> Call:
    """Name the contestant in whatever the call raises."""

    def named() -> object:
        try:
            return call()
        except Exception as error:
            raise RuntimeError(f"{contestant.id}: {error}") from error

    return named


def time_graphs(
    reporter: Reporter, which: str, mode: str, each: int, calls: Calls, rows: Callable[..., list[Row]]
) -> None:
    """Capture every call, then time the replays of those that could be captured."""
    if reporter.finished(f"time {which} {mode}"):
        return
    graphs = {}
    for contestant, call in never_waiting(reporter, which, calls, "in a graph").items():
        capture = partial(_capture, call, each)
        graph = reporter.attempt(f"{mode} {which} {contestant.id}", capture, kept=False, spoils=True)
        if graph is not None:
            graphs[contestant] = graph
    if graphs:
        reporter.attempt(f"time {which} {mode}", partial(rows, which, graphs, mode, each))
    graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()


def never_waiting(reporter: Reporter, which: str, calls: Calls, mode: str) -> Calls:
    """Return the calls that can be enqueued before the GPU begins; report the others as not run in this mode."""

    def waits(call: Call) -> str:
        try:
            result = assert_never_waits(call)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return f"it waits for the GPU ({error})"
        return "no" if on_gpu(result) else "it runs on the host"

    ready = {}
    for contestant, call in calls.items():
        who = f"{which} {contestant.id}"
        answer = reporter.attempt(f"waits {who}", partial(waits, call))
        if answer == "no":
            ready[contestant] = call
        elif answer is not None:
            reporter.not_run(f"{who} {mode}", answer)
    return ready


def _capture(call: Call, each: int) -> Graphed:
    graphed = Graphed(call, each)
    assert_replays(graphed, call())
    return graphed
