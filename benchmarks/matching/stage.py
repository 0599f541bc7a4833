"""One job of matching on stage: who may take part, whose answer is right, and the race between those."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.matching.gate import assert_right
from benchmarks.matching.peers import BASELINES, Matcher, MatchingInputs
from benchmarks.matching.workloads import ASSIGNMENT, MatchingEffort
from benchmarks.measure.race import Timing, race, stopwatch_for

LONGEST_REASON = 300


@dataclass(frozen=True)
class MatchingOutcome:
    """What came of everyone, by name: a refusal, an error in the answer, times, or a peer's error and its times."""

    refusals: dict[str, str]
    errors: dict[str, str]
    timings: dict[str, Timing]


def measure(
    op: str, inputs: MatchingInputs, everyone: Sequence[Matcher], effort: MatchingEffort, seconds: float
) -> MatchingOutcome:
    """Check everyone, then time for about `seconds` those who pass. A wrong peer is timed and marked; ours is not."""
    refusals, errors, racers = {}, {}, {}
    for matcher in everyone:
        reason = matcher.unsupported(op, inputs) or _too_many_pairs(matcher, op, inputs, effort)
        if reason is None:
            reason, error = _look_at(matcher, op, inputs, effort)
            if error is not None:
                errors[matcher.name] = error
        if reason is not None:
            refusals[matcher.name] = reason
        elif not (matcher.ours and matcher.name in errors):
            racers[matcher.name] = partial(matcher.run, op, inputs)
    timings = race(racers, stopwatch_for(inputs.logits.device.type), seconds, effort.laps) if racers else {}
    return MatchingOutcome(refusals, errors, timings)


def _too_many_pairs(matcher: Matcher, op: str, inputs: MatchingInputs, effort: MatchingEffort) -> str | None:
    """Peers compute the cost of every query with every target of the whole batch."""
    if matcher.ours or op == ASSIGNMENT or inputs.step.all_pairs <= effort.most_pairs:
        return None
    return f"it would compute more than {effort.most_pairs:,} pairs, most of them of two images; --full waits for more"


def _look_at(
    matcher: Matcher, op: str, inputs: MatchingInputs, effort: MatchingEffort
) -> tuple[str | None, str | None]:
    """Why it is not timed here, and what is wrong with its answer."""
    try:
        took = check(matcher, op, inputs, effort.slowest_s)
    except AssertionError as error:
        return None, str(error)
    except Exception as error:  # must not end the others' race; ours fails its own test with it
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        return (None, reason) if matcher.ours else (reason, None)
    if took > effort.slowest_s and matcher.name != BASELINES[op]:
        return f"a call takes more than {effort.slowest_s:g} s; --full waits for longer", None
    return None, None


def check(matcher: Matcher, op: str, inputs: MatchingInputs, slowest_s: float = 0.0) -> float:
    """Seconds that a call took.

    The second call is the one that is looked at, because a cache must not spoil it, and the first may compile. On a CPU
    nothing compiles, and a slow one is not called twice.
    """
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        result = matcher.run(op, inputs)
        if inputs.logits.is_cuda:
            torch.cuda.synchronize()  # an illegal access is this contestant's, not the next one's
        elif time.perf_counter() - start > slowest_s:
            break
    took = time.perf_counter() - start
    assert_right(matcher, op, inputs, result)
    return took
