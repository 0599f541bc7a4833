"""Collect the results of one run in one JSON document; README.md explains its fields."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import machine
from benchmarks.measure.race import Timing, middle_half
from benchmarks.measure.stage import Contestant, Outcome

RESULTS = Path(__file__).resolve().parents[1] / "results"
LATEST = "latest"  # the folder of runs that are not published
FILE_NAME = "results.json"
MEASUREMENTS = ("speed", "memory", "growth", "whole_model", "detector", "matching", "matching_growth")


class Results:
    """What a run has measured so far."""

    def __init__(self, effort: str, device: str) -> None:
        self.document: dict[str, Any] = {
            "effort": effort,
            "machine": machine.describe(device),
            **{part: [] for part in MEASUREMENTS},
            "not_run": {},  # contestant -> reason
            "wrong": [],
        }

    @property
    def measured(self) -> bool:
        return any(self.document[part] for part in MEASUREMENTS)

    def add(
        self, part: str, about: dict[str, Any], which: str, contestant: Contestant, outcome: Outcome
    ) -> dict[str, Any]:
        """Append and return the row of one contestant: `about`, its times and its ratios."""
        row = about | compared(which, contestant, outcome)
        self.document[part].append(row)
        return row


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file in one step: a run that is ended leaves a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def compared(which: str, contestant: Contestant, outcome: Outcome) -> dict[str, Any]:
    """Return a contestant's times; its ratio to the baseline and, for ours, to the fastest peer, if those ran."""
    timings = outcome.timings[which]
    timing, baseline = timings[contestant], outcome.baseline(contestant)
    row = times(timing) | {"implementation": contestant.implementation, "ours": contestant.ours}
    if baseline in timings:
        row["speedup"] = spread(timing.speedup_over(timings[baseline]))
    everyone = [other for other in timings if not other.ours]
    peers = [c for c in everyone if c.dtype == contestant.dtype] or [c for c in everyone if c.dtype == "fp32"]
    if contestant.ours and peers:
        best = min(peers, key=lambda peer: median(timings[peer].samples))
        row["best_peer"] = best.id
        row["speedup_over_best_peer"] = spread(timing.speedup_over(timings[best]))
    if contestant in outcome.errors:
        row["inaccurate"] = outcome.errors[contestant]
    return row


def times(timing: Timing) -> dict[str, Any]:
    middle, low, high = (round(seconds * 1e3, 4) for seconds in middle_half(timing.samples))
    return {"median_ms": middle, "quartiles_ms": [low, high], "rounds": len(timing.samples)}


def spread(speedup: tuple[float, float, float]) -> dict[str, Any]:
    middle, low, high = (round(ratio, 3) for ratio in speedup)
    return {"median": middle, "quartiles": [low, high]}


def published(file: str = FILE_NAME) -> list[Path]:
    return sorted(path for path in RESULTS.glob(f"*/{file}") if path.parent.name != LATEST)
