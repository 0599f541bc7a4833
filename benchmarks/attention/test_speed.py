"""Speed, peak memory and growth of deformable attention, by backend, dtype and peer.

All contestants of a workload are timed by turns in one race; each test here reports one of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.attention.memory import peak_memory
from benchmarks.attention.peers import implementations
from benchmarks.attention.stage import PASSES, measure
from benchmarks.measure.playback import Playback

CLOCK = Playback()


@pytest.mark.benchmark(timer=CLOCK)
def test_speed(op, case, which, contestant, outcome_of, results, benchmark):
    outcome = outcome_of(op, case)
    if contestant in outcome.refusals:
        pytest.skip(f"{contestant.implementation}: {outcome.refusals[contestant]}")
    if contestant in outcome.errors and implementations()[contestant.implementation].ours:
        results.document["wrong"].append(outcome.errors[contestant])
        pytest.fail(f"no speed for a wrong kernel: {outcome.errors[contestant]}", pytrace=False)
    row = results.add_speed(op, case, which, contestant, outcome)
    benchmark.group = f"{case.id} {op} {which}"
    benchmark.extra_info["speedup"] = row["speedup"]
    CLOCK.play(benchmark, outcome.timings[which][contestant].samples)


def test_memory(op, case, contestant, memory_meter, results, device):
    results.add_memory(op, case, contestant, peak_memory(op, case, contestant.implementation, contestant.dtype, device))


def test_growth(series, x, case, our_contestants, results, effort, device):
    quick = replace(effort, race_s=effort.race_s / 5, laps=2)
    outcome = measure("fused_ms_deform_attn", case, our_contestants, quick, device)
    assert not outcome.errors, "\n".join(outcome.errors.values())
    for which in PASSES:
        for contestant in outcome.timings[which]:
            results.add_growth(series.name, series.label, x, which, contestant, outcome)
