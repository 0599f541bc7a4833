"""A wrong matcher gets no speed, whether its costs are off, its assignment is not the best, or it is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.matching import test_speed as speed
from benchmarks.matching.peers import BASELINES, MatchingInputs, matchers
from benchmarks.matching.stage import MatchingOutcome, measure
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER, SHORT, MatchingStep
from benchmarks.measure import results as results_module
from benchmarks.measure.results import Results

STEP = MatchingStep(6, "middle", 2, sets=2, queries=50, classes=10)


def off_by_a_percent(cost):
    return cost * 1.01


def last_query_missed(cost):
    cost = cost.clone()
    cost[..., -1] = 0
    return cost


def two_swapped(columns):
    columns = columns.clone()
    columns[-1, -2:] = columns[-1, -2:].flip(0)
    return columns


def column_repeated(columns):
    columns = columns.clone()
    columns[0, 1] = columns[0, 0]
    return columns


def one_left_out(columns):
    columns = columns.clone()
    columns[1, 3] = -1
    return columns


def planted(op, spoil, ours, monkeypatch) -> MatchingOutcome:
    """What came of a race in which the reference's spoilt result takes part as "planted"."""
    known = matchers()
    reference = known["reference"]
    wrong = replace(reference, name="planted", ours=ours, run=lambda op, inputs: spoil(reference.run(op, inputs)))
    everyone = known | {"planted": wrong}
    for module in (speed, results_module):
        monkeypatch.setattr(module, "matchers", lambda: everyone)
    return measure(op, MatchingInputs(STEP, "cpu"), [known[BASELINES[op]], wrong], SHORT, 0.0)


@pytest.mark.parametrize(
    ("op", "spoil", "message"),
    [
        (COST, off_by_a_percent, "a cost is off by"),
        (COST, last_query_missed, "a cost is off by"),
        (ASSIGNMENT, two_swapped, r"set 1, image 1: the sum of its costs is .*, SciPy's"),
        (ASSIGNMENT, column_repeated, "set 0, image 0: two targets have the same query"),
        (ASSIGNMENT, one_left_out, "set 1, image 0: 5 pairs of 6"),
        (MATCHER, two_swapped, r"set 1, image 1: the sum of its costs is .*, SciPy's"),
    ],
)
def test_wrong_matcher_is_refused_with_what_is_wrong(op, spoil, message, monkeypatch):
    outcome = planted(op, spoil, ours=True, monkeypatch=monkeypatch)
    assert set(outcome.timings) == {BASELINES[op]}
    results = Results("short", "cpu")
    with pytest.raises(pytest.fail.Exception, match=f"no speed for a wrong kernel: {op} by planted .*{message}"):
        speed.test_matching(op, STEP, "planted", lambda *_: outcome, results, benchmark=None)
    assert not results.document["matching"] and results.document["wrong"]


def test_wrong_peer_is_timed_and_marked(monkeypatch):
    outcome = planted(ASSIGNMENT, two_swapped, ours=False, monkeypatch=monkeypatch)
    results = Results("short", "cpu")
    row = results.add_matching(ASSIGNMENT, STEP, "planted", outcome)
    assert row["median_ms"] > 0 and "the sum of its costs" in row["inaccurate"]
