"""The order of the tests, the quickest answers first, and the time of each lane."""

from __future__ import annotations

import re

import pytest

FAST, SLOW = "CPU, reference and detector", "emulated and interpreted kernels"
_SLOW = re.compile(r"^tests/(cuda|triton)/|\[.*(emulated|interpreted)")


def lane_of(nodeid: str) -> str:
    """Return the lane of a test."""
    return SLOW if _SLOW.search(nodeid) else FAST


class LaneTimes:
    """A plugin that reports how long each lane took, from its first test to its last."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        lane = lane_of(report.nodeid)
        first, last = self._spans.get(lane, (report.start, report.stop))
        self._spans[lane] = min(first, report.start), max(last, report.stop)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._spans:
            terminalreporter.section("time of each lane")
        for lane, (first, last) in self._spans.items():
            terminalreporter.line(f"{last - first:6.0f} s  {lane}")
