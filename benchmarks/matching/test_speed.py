"""Speed of matching: the cost, the assignment and both together, against DINO's own way, SciPy and other solvers.

All contestants of a job are timed by turns in one race; each test here reports one of them.
"""

from __future__ import annotations

import pytest

from benchmarks.matching.peers import LISTS, MatchingInputs
from benchmarks.matching.stage import MatchingStage
from benchmarks.matching.workloads import OPS
from benchmarks.measure.playback import CLOCK, report_one
from benchmarks.measure.stage import measure


def about(op, step):
    return {"workload": step.id, "op": op, "problems": step.problems, "targets": sum(step.counts())}


@pytest.mark.benchmark(timer=CLOCK)
def test_matching(op, step, contestant, matching_outcome_of, results, benchmark):
    report_one("matching", about(op, step), op, contestant, matching_outcome_of(op, step), results, benchmark)


def test_matching_growth(series, x, step, matching_contestants, results, matching_effort, device):
    inputs, effort = MatchingInputs(step, device), matching_effort
    for op in OPS:
        stage = MatchingStage(op, inputs, effort.slowest_s, effort.most_pairs)
        everyone = matching_contestants(op)
        ours = [c for c in everyone if c.ours and not c.implementation.endswith(LISTS)]
        # Without a kernel, the reference.
        ours = [c for c in ours if c.implementation != "reference"] or ours
        outcome = measure(stage, [stage.baseline(ours[0]), *ours], effort.growth_s, effort.laps)
        assert not outcome.errors, "\n".join(outcome.errors.values())
        for contestant in outcome.timings[op]:
            row = about(op, step) | {"series": series.name, "label": series.label, "x": x}
            del row["workload"]
            results.add("matching_growth", row, op, contestant, outcome)
