"""A wrong matcher gets no speed, whether its costs are off, its assignment is not the best, or it is no assignment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.matching.peers import BASELINES, MatchingInputs, matchers
from benchmarks.matching.stage import MatchingStage
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER, MatchingStep
from benchmarks.measure.playback import report_one
from benchmarks.measure.results import Results, compared
from benchmarks.measure.stage import Contestant, Outcome, measure

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


def planted(op, spoil, ours) -> tuple[Contestant, Outcome]:
    """Race the reference's spoilt result, as "planted", against the baseline."""
    reference = matchers()["reference"]
    wrong = replace(reference, name="planted", ours=ours, run=lambda op, inputs: spoil(reference.run(op, inputs)))
    stage = MatchingStage(op, MatchingInputs(STEP, "cpu"), known=matchers() | {"planted": wrong})
    contestant = Contestant("planted", ours=ours)
    return contestant, measure(stage, [stage.baseline(contestant), contestant], 0.0, 2)


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
def test_wrong_matcher_is_refused_with_what_is_wrong(op, spoil, message):
    contestant, outcome = planted(op, spoil, ours=True)
    assert set(outcome.timings[op]) == {Contestant(BASELINES[op])}
    results, about = Results("short", "cpu"), {"op": op, "workload": STEP.id}
    with pytest.raises(pytest.fail.Exception, match=f"no speed for a wrong kernel: {op} by planted .*{message}"):
        report_one("matching", about, op, contestant, outcome, results, benchmark=None)
    assert not results.document["matching"] and results.document["wrong"]


def test_wrong_peer_is_timed_and_marked():
    contestant, outcome = planted(ASSIGNMENT, two_swapped, ours=False)
    row = compared(ASSIGNMENT, contestant, outcome)
    assert row["median_ms"] > 0 and "the sum of its costs" in row["inaccurate"]
