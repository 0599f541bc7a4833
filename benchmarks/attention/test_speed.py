"""Speed, peak memory and growth of deformable attention, by backend, dtype and peer.

All contestants of a workload are timed by turns in one race; each test here reports one of them.
"""

from __future__ import annotations

import pytest

from benchmarks.attention.memory import peak_memory
from benchmarks.attention.stage import PASSES, AttentionStage
from benchmarks.measure.playback import CLOCK, report_one
from benchmarks.measure.stage import measure


@pytest.mark.benchmark(timer=CLOCK)
def test_speed(op, case, which, contestant, outcome_of, results, benchmark):
    about = {"workload": case.id, "op": op, "pass": which, "dtype": contestant.dtype}
    report_one("speed", about, which, contestant, outcome_of(op, case), results, benchmark)


def test_memory(op, case, contestant, memory_meter, results, device):
    mib = peak_memory(op, case, contestant.implementation, contestant.dtype, device)
    row = {"workload": case.id, "op": op, "implementation": contestant.implementation, "dtype": contestant.dtype}
    results.document["memory"].append(row | {f"{name}_mib": size for name, size in mib.items()})


def test_growth(series, x, case, our_contestants, results, effort, device):
    stage = AttentionStage("fused_ms_deform_attn", case, device)
    outcome = measure(stage, our_contestants, effort.race_s / 5, 2)
    assert not outcome.errors, "\n".join(outcome.errors.values())
    for which in PASSES:
        for contestant in outcome.timings[which]:
            about = {"series": series.name, "label": series.label, "x": x, "pass": which, "dtype": contestant.dtype}
            results.add("growth", about, which, contestant, outcome)
