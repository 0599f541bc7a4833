"""The results of one run, as one JSON document; README.md explains its fields."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.attention.peers import implementations
from benchmarks.attention.stage import Contestant, Outcome, baseline
from benchmarks.matching.peers import BASELINES, matchers
from benchmarks.matching.stage import MatchingOutcome
from benchmarks.matching.workloads import MatchingStep
from benchmarks.measure import machine
from benchmarks.measure.race import Timing, middle_half
from dino_kernels.testing import Case

RESULTS = Path(__file__).resolve().parents[1] / "results"
LATEST = "latest"  # the folder of runs that are not published
FILE_NAME = "results.json"
MEASUREMENTS = ("speed", "memory", "growth", "whole_model", "detector", "matching", "matching_growth")


class Results:
    """Collects what a run measures."""

    def __init__(self, effort: str, device: str) -> None:
        self.document: dict[str, Any] = {
            "effort": effort,
            "machine": machine.describe(device),
            **{part: [] for part in MEASUREMENTS},
            "not_run": {},  # contestant -> reason
            "wrong": [],
        }
        self._ours = {name for name, implementation in implementations().items() if implementation.ours}

    @property
    def measured(self) -> bool:
        return any(self.document[part] for part in MEASUREMENTS)

    def add_speed(self, op: str, case: Case, which: str, contestant: Contestant, outcome: Outcome) -> dict[str, Any]:
        row = {"workload": case.id, "op": op} | self._times(which, contestant, outcome)
        self.document["speed"].append(row)
        return row

    def add_growth(self, series: str, label: str, x: int, which: str, contestant: Contestant, outcome: Outcome) -> None:
        row = {"series": series, "label": label, "x": x} | self._times(which, contestant, outcome)
        self.document["growth"].append(row)

    def add_memory(self, op: str, case: Case, contestant: Contestant, mib: dict[str, float]) -> None:
        row = {"workload": case.id, "op": op, "implementation": contestant.implementation, "dtype": contestant.dtype}
        self.document["memory"].append(row | {f"{name}_mib": size for name, size in mib.items()})

    def add_whole_model(self, model: str, which: str, before: Timing, after: Timing) -> None:
        row = {"model": model, "pass": which, "before": times(before), "after": times(after)}
        self.document["whole_model"].append(row | {"speedup": spread(after.speedup_over(before))})

    def add_detector(
        self, model: str, reference: Timing, kernel: Timing, parts_ms: dict[str, dict[str, float]]
    ) -> None:
        row = {"model": model, "reference": times(reference), "kernel": times(kernel), "parts_ms": parts_ms}
        self.document["detector"].append(row | {"speedup": spread(kernel.speedup_over(reference))})

    def add_matching(self, op: str, step: MatchingStep, name: str, outcome: MatchingOutcome) -> dict[str, Any]:
        row = {"workload": step.id} | matching_times(op, step, name, outcome)
        self.document["matching"].append(row)
        return row

    def add_matching_growth(
        self, series: str, label: str, x: int, op: str, step: MatchingStep, name: str, outcome: MatchingOutcome
    ) -> None:
        row = {"series": series, "label": label, "x": x} | matching_times(op, step, name, outcome)
        self.document["matching_growth"].append(row)

    def _times(self, which: str, contestant: Contestant, outcome: Outcome) -> dict[str, Any]:
        timings = outcome.timings[which]
        timing = timings[contestant]
        row = times(timing) | {
            "pass": which,
            "implementation": contestant.implementation,
            "dtype": contestant.dtype,
            "ours": contestant.implementation in self._ours,
            "speedup": spread(timing.speedup_over(timings[baseline(contestant.dtype)])),
        }
        everyone = [c for c in timings if c.implementation not in self._ours]
        peers = [c for c in everyone if c.dtype == contestant.dtype] or [c for c in everyone if c.dtype == "fp32"]
        if row["ours"] and peers:
            best = min(peers, key=lambda peer: median(timings[peer].samples))
            row["best_peer"] = best.id
            row["speedup_over_best_peer"] = spread(timing.speedup_over(timings[best]))
        if contestant in outcome.errors:
            row["inaccurate"] = outcome.errors[contestant]
        return row

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document, indent=1) + "\n")


def matching_times(op: str, step: MatchingStep, name: str, outcome: MatchingOutcome) -> dict[str, Any]:
    """Times of one contestant; ratios over the baseline and, of ours, over the fastest peer, where those ran."""
    timings, known = outcome.timings, matchers()
    row = {"op": op, "implementation": name, "ours": known[name].ours} | times(timings[name])
    row |= {"problems": step.problems, "targets": sum(step.counts())}
    baseline = BASELINES[op]
    if baseline in timings:
        row["speedup"] = spread(timings[name].speedup_over(timings[baseline]))
    peers = [peer for peer in timings if not known[peer].ours]
    if row["ours"] and peers:
        row["best_peer"] = min(peers, key=lambda peer: median(timings[peer].samples))
        row["speedup_over_best_peer"] = spread(timings[name].speedup_over(timings[row["best_peer"]]))
    if name in outcome.errors:
        row["inaccurate"] = outcome.errors[name]
    return row


def times(timing: Timing) -> dict[str, Any]:
    middle, low, high = (round(seconds * 1e3, 4) for seconds in middle_half(timing.samples))
    return {"median_ms": middle, "quartiles_ms": [low, high], "rounds": len(timing.samples)}


def spread(speedup: tuple[float, float, float]) -> dict[str, Any]:
    middle, low, high = (round(ratio, 3) for ratio in speedup)
    return {"median": middle, "quartiles": [low, high]}


def published(file: str = FILE_NAME) -> list[Path]:
    return sorted(path for path in RESULTS.glob(f"*/{file}") if path.parent.name != LATEST)
