"""Measure matching in the GPU suite: times per call and in a CUDA graph, and how many kernels a call launches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.profiler import DeviceType

from benchmarks.gpu import timing
from benchmarks.gpu.isolated import Reporter
from benchmarks.gpu.timing import Calls
from benchmarks.matching.peers import MatchingInputs
from benchmarks.matching.stage import MatchingStage
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER, MatchingStep
from benchmarks.measure.race import Call
from benchmarks.measure.stage import Contestant

# Only in `pytest benchmarks/`: they run on the host, slowly, and nobody with a GPU uses them.
ELSEWHERE = {"lapx-lapjv": "it takes 10 ms a problem on the host", "reference": "it solves in NumPy, on the host"}
STEPS = {
    "7x16 T=20": MatchingStep(20, "middle", 16),
    # "middle" has no two targets whose best query is the same: nothing to solve. These have.
    "7x16 T=20 early": MatchingStep(20, "early", 16),
    "7x16 COCO": MatchingStep(None, "middle", 16),
    "7x16 T=100": MatchingStep(100, "middle", 16),
    "7x16 T=20 collapsed": MatchingStep(20, "collapsed", 16),
    "7x2 T=300 collapsed": MatchingStep(300, "collapsed", 2),
    # What torch-linear-assignment publishes, in its terms batch 208 of 300 workers x 100, 300, 600 tasks.
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


# Pairs of all queries with all targets of the batch, which DINO's own way has in memory.
MOST_PAIRS = 1_000_000_000


class SuiteStage(MatchingStage):
    """Matching without those who are too slow or too large for a GPU's machine."""

    def unsupported(self, contestant: Contestant) -> str | None:
        reason = elsewhere(contestant.implementation, self.op, self.inputs.step)
        return reason or super().unsupported(contestant)


def elsewhere(name: str, job: str, step: MatchingStep) -> str | None:
    """Return why a contestant that has the job does not take part here, or None."""
    if job != COST and name in ELSEWHERE:
        return ELSEWHERE[name]
    if name in ("dino", "scipy") and step.all_pairs > MOST_PAIRS:
        return f"DINO's matrices of all pairs have {step.all_pairs:,} entries, more than {MOST_PAIRS:,}"
    return None


def part_name(step: str, job: str) -> str:
    return f"matching {step} {job}"


def miniature(step: MatchingStep) -> MatchingStep:
    """Return a step of the same kind and ratio of targets to queries, which takes a CPU milliseconds."""
    few = None if step.targets is None else min(step.targets, 10)
    queries = 60
    if step.targets is not None and 3 * step.targets > step.queries:
        queries = -(-10 * step.queries // step.targets)
    return MatchingStep(few, step.costs, images=2, sets=2, queries=queries, classes=10)


def speed(reporter: Reporter, job: str, step: MatchingStep, device: str, seconds: float, laps: int) -> None:
    """Time everyone, and count the kernels that ours launch."""
    stage = SuiteStage(job, MatchingInputs(step, device))

    def count(calls: Calls) -> None:
        for contestant, call in calls.items():
            if contestant.ours:
                row = {"kind": "launches", **stage.about(contestant)}
                reporter.attempt(f"launches {contestant.id}", partial(_launches_row, row, call))

    timing.speed(reporter, stage, stage.contestants(), seconds, laps, kind="matching", also=count)


def _launches_row(row: dict[str, Any], call: Call) -> list[dict[str, Any]]:
    return [row | {"launches": launches(call)}]


def launches(call: Call) -> int:
    """Count the kernels, copies and fills that one call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_gpu = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    if not on_gpu:
        raise RuntimeError("the profiler saw no kernel")
    return len(on_gpu)
