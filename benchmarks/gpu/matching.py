"""What the GPU suite measures of matching: times per call and in a CUDA graph, and how many kernels a call launches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.profiler import DeviceType

from benchmarks.attention.stage import Contestant
from benchmarks.gpu.graphs import time_graphs
from benchmarks.gpu.isolated import Reporter
from benchmarks.gpu.parts import named
from benchmarks.matching.peers import Matcher, MatchingInputs, matchers
from benchmarks.matching.stage import check
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER, MatchingStep
from benchmarks.measure.race import Call, Timing, race, stopwatch_for
from benchmarks.measure.results import times

LONGEST_MESSAGE = 400
# Who is left to `pytest benchmarks/`: on the host, slow, and nobody's choice where there is a GPU.
ELSEWHERE = {"lapx-lapjv": "it takes 10 ms a problem on the host", "reference": "it solves in NumPy, on the host"}
STEPS = {
    "7x16 T=20": MatchingStep(20, "middle", 16),
    # "middle" has no two targets that want the same query: nothing to solve. These have.
    "7x16 T=20 early": MatchingStep(20, "early", 16),
    "7x16 COCO": MatchingStep(None, "middle", 16),
    "7x16 T=100": MatchingStep(100, "middle", 16),
    "7x16 T=20 collapsed": MatchingStep(20, "collapsed", 16),
    "7x2 T=300 collapsed": MatchingStep(300, "collapsed", 2),
    # What torch-linear-assignment publishes, in its words batch 208 of 300 workers x 100, 300, 600 tasks.
    **{
        f"208 of 300x{tasks}": MatchingStep(300, "random", images=208, sets=1, queries=tasks)
        for tasks in (100, 300, 600)
    },
}
# (step, job, seconds of a race), the important ones first.
JOBS = (
    ("7x16 T=20", MATCHER, 2.0),
    ("7x16 T=20", ASSIGNMENT, 2.0),
    ("7x16 T=20", COST, 1.0),
    ("7x16 T=20 early", MATCHER, 1.0),
    ("7x16 T=20 collapsed", MATCHER, 1.0),
    ("7x16 COCO", MATCHER, 1.0),
    ("7x16 T=20 early", ASSIGNMENT, 1.0),
    ("7x16 T=20 collapsed", ASSIGNMENT, 1.0),
    ("208 of 300x100", ASSIGNMENT, 1.0),
    ("208 of 300x300", ASSIGNMENT, 1.0),
    ("208 of 300x600", ASSIGNMENT, 1.0),
    ("7x16 T=100", MATCHER, 1.0),
    ("7x16 T=100", ASSIGNMENT, 1.0),
    ("7x2 T=300 collapsed", ASSIGNMENT, 1.0),
    ("7x2 T=300 collapsed", MATCHER, 1.0),
)


# Pairs of all queries with all targets of the batch, that DINO's own way has in memory.
MOST_PAIRS = 1_000_000_000


def elsewhere(name: str, job: str, step: MatchingStep) -> str | None:
    """Why somebody who can do the job takes no part in it here."""
    if job != COST and name in ELSEWHERE:
        return ELSEWHERE[name]
    if name in ("dino", "scipy") and step.all_pairs > MOST_PAIRS:
        return f"DINO's matrices of all pairs have {step.all_pairs:,} entries, more than {MOST_PAIRS:,}"
    return None


def part_name(step: str, job: str) -> str:
    return f"matching {step} {job}"


def miniature(step: MatchingStep) -> MatchingStep:
    """A step of the same kind, and with as many targets over its queries, that a CPU takes milliseconds for."""
    few = None if step.targets is None else min(step.targets, 10)
    queries = 60
    if step.targets is not None and 3 * step.targets > step.queries:
        queries = -(-10 * step.queries // step.targets)
    return MatchingStep(few, step.costs, images=2, sets=2, queries=queries, classes=10)


def speed(reporter: Reporter, job: str, step: MatchingStep, device: str, seconds: float, laps: int) -> None:
    """Time of everyone, per call and in a CUDA graph, and the kernels that ours launch."""
    inputs = MatchingInputs(step, device)
    racers: dict[Contestant, Matcher] = {}
    notes: dict[Contestant, dict[str, str]] = {}
    for matcher in matchers().values():
        if job not in matcher.ops:
            continue
        contestant = Contestant(matcher.name, "fp32")
        reason = elsewhere(matcher.name, job, step) or matcher.unsupported(job, inputs)
        if reason is not None:
            reporter.not_run(f"{matcher.name} {job}", reason)
            continue
        note = reporter.attempt(f"check {contestant.id}", partial(_check, matcher, job, inputs))
        if note is not None:
            racers[contestant], notes[contestant] = matcher, note

    def call_of(contestant: Contestant) -> Call:
        return named(contestant, partial(racers[contestant].run, job, inputs))

    def about(contestant: Contestant) -> dict[str, Any]:
        ours = racers[contestant].ours
        return {"workload": step.id, "op": job, "implementation": contestant.implementation, "ours": ours}

    def rows(mode: str, timings: dict[Contestant, Timing]) -> list[dict[str, Any]]:
        return [
            {"kind": "matching", "mode": mode, **about(c), "dtype": c.dtype, **times(timing), **notes[c]}
            for c, timing in timings.items()
        ]

    def time_calls(which: str, calls: dict[Contestant, Call], mode: str, each: int = 1) -> list[dict[str, Any]]:
        timings = race(calls, stopwatch_for(device), seconds, laps)
        return rows(mode, {contestant: timing.per_call(each) for contestant, timing in timings.items()})

    calls = {contestant: call_of(contestant) for contestant in racers}
    if calls:
        reporter.attempt(f"time {job}", lambda: time_calls(job, calls, "call"))
    if device != "cuda":
        reporter.not_run("CUDA graphs and launches", f"they need a CUDA device; this is {device}")
        return
    for contestant, matcher in racers.items():
        if matcher.ours:
            row = {"kind": "launches", **about(contestant)}
            reporter.attempt(f"launches {contestant.id}", partial(_launches_row, row, calls[contestant]))
    # Last, because a capture that fails spoils the process.
    time_graphs(reporter, job, "graph", 1, calls, time_calls)


def _check(matcher: Matcher, job: str, inputs: MatchingInputs) -> dict[str, str]:
    """A wrong one of ours raises and gets no speed; a wrong peer is noted."""
    try:
        check(matcher, job, inputs)
    except AssertionError as error:
        if matcher.ours:
            raise
        return {"inaccurate": str(error)[:LONGEST_MESSAGE]}
    return {}


def _launches_row(row: dict[str, Any], call: Call) -> list[dict[str, Any]]:
    return [row | {"launches": launches(call)}]


def launches(call: Call) -> int:
    """Kernels, copies and fills that one call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_gpu = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    if not on_gpu:
        raise RuntimeError("the profiler saw no kernel")
    return len(on_gpu)
