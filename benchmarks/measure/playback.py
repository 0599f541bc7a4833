"""Durations that a race measured, handed to pytest-benchmark.

pytest-benchmark times one function after another; a race times them by turns. So the race measures, and
pytest-benchmark gets this clock as its timer, for its tables, its files and `--benchmark-compare`.
"""

from __future__ import annotations

from typing import Any


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
