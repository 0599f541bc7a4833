"""Speed of matching: the cost, the assignment and both together, against DINO's own way, SciPy and other solvers.

All contestants of a job are timed by turns in one race; each test here reports one of them.
"""

from __future__ import annotations

import pytest

from benchmarks.matching.peers import BASELINES, LISTS, MatchingInputs, matchers
from benchmarks.matching.stage import measure
from benchmarks.matching.workloads import OPS
from benchmarks.measure.playback import Playback

CLOCK = Playback()


@pytest.mark.benchmark(timer=CLOCK)
def test_matching(op, step, name, matching_outcome_of, results, benchmark):
    outcome = matching_outcome_of(op, step)
    if name in outcome.refusals:
        results.document["not_run"][f"{name} {op} {step.id}"] = outcome.refusals[name]
        pytest.skip(f"{name}: {outcome.refusals[name]}")
    if name in outcome.errors and matchers()[name].ours:
        results.document["wrong"].append(outcome.errors[name])
        pytest.fail(f"no speed for a wrong kernel: {outcome.errors[name]}", pytrace=False)
    row = results.add_matching(op, step, name, outcome)
    benchmark.group = f"{step.id} {op}"
    benchmark.extra_info["speedup"] = row.get("speedup")
    CLOCK.play(benchmark, outcome.timings[name].samples)


def test_matching_growth(series, x, step, matching_names, results, matching_effort, device):
    inputs, known = MatchingInputs(step, device), matchers()
    for op in OPS:
        ours = [name for name in matching_names(op) if known[name].ours and not name.endswith(LISTS)]
        # The reference stands in where there is no kernel.
        ours = [name for name in ours if name != "reference"] or ours
        everyone = [known[name] for name in (BASELINES[op], *ours)]
        outcome = measure(op, inputs, everyone, matching_effort, matching_effort.growth_s)
        assert not outcome.errors, "\n".join(outcome.errors.values())
        for name in outcome.timings:
            results.add_matching_growth(series.name, series.label, x, op, step, name, outcome)
