"""Replay the durations of a race for pytest-benchmark.

pytest-benchmark times one function after another; a race times them by turns. So the race measures, and
pytest-benchmark gets this clock as its timer, for its tables, its files and `--benchmark-compare`.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.measure.results import Results
from benchmarks.measure.stage import Contestant, Outcome


class Playback:
    """A timer that advances by recorded durations."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, seconds: list[float]) -> None:
        """Fill pytest-benchmark's fixture with one round for each duration."""
        durations = iter(seconds)

        def advance() -> None:
            self.now += next(durations)

        benchmark.pedantic(advance, rounds=len(seconds))


CLOCK = Playback()


def report_one(
    part: str,
    about: dict[str, Any],
    which: str,
    contestant: Contestant,
    outcome: Outcome,
    results: Results,
    benchmark: Any,
) -> None:
    """Report one contestant of a race as this test's result: skipped if refused, failed if ours and wrong."""
    if contestant in outcome.refusals:
        name = f"{contestant.id} {about['op']} {about['workload']}"
        results.document["not_run"][name] = outcome.refusals[contestant]
        pytest.skip(f"{contestant.implementation}: {outcome.refusals[contestant]}")
    if contestant in outcome.errors and contestant.ours:
        results.document["wrong"].append(outcome.errors[contestant])
        pytest.fail(f"no speed for a wrong kernel: {outcome.errors[contestant]}", pytrace=False)
    row = results.add(part, about, which, contestant, outcome)
    benchmark.group = " ".join(dict.fromkeys((about["workload"], about["op"], which)))
    benchmark.extra_info["speedup"] = row.get("speedup")
    CLOCK.play(benchmark, outcome.timings[which][contestant].samples)
