"""Define every race: who can take part, whose result is right, and what is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.race import Call, Timing, race, stopwatch_for

LONGEST_REASON = 2000


class Refused(Exception):
    """A contestant cannot take part; the message gives the reason."""


@dataclass(frozen=True)
class Contestant:
    """An implementation in one dtype."""

    implementation: str
    dtype: str = ""  # empty where all have the same
    ours: bool = False

    @property
    def id(self) -> str:
        return f"{self.implementation}-{self.dtype}" if self.dtype else self.implementation


class Stage:
    """One workload and op, on one device."""

    def __init__(self, op: str, workload: str, device: str, passes: tuple[str, ...]) -> None:
        self.op, self.workload, self.device, self.passes = op, workload, device, passes

    def baseline(self, contestant: Contestant) -> Contestant:
        """Return the contestant that this one is compared with."""
        raise NotImplementedError

    def unsupported(self, contestant: Contestant) -> str | None:
        """Return why the contestant cannot run this call, or None."""
        raise NotImplementedError

    def check(self, contestant: Contestant) -> None:
        """Run everything that is timed and compare the result.

        Raises:
            AssertionError: the result is wrong.
            Refused: it is too slow to be timed here.
        """
        raise NotImplementedError

    def free(self) -> None:
        """Release what only `check` needs."""

    def call(self, which: str, contestant: Contestant) -> Call:
        """Return one of `passes`, ready to be timed."""
        raise NotImplementedError

    def about(self, contestant: Contestant) -> dict[str, Any]:
        """Return the fields that name a contestant in a row of results."""
        names = {"implementation": contestant.implementation, "dtype": contestant.dtype, "ours": contestant.ours}
        return {"workload": self.workload, "op": self.op, **names}


@dataclass(frozen=True)
class Outcome:
    """What each contestant got: a refusal, an error in the result, times, or a peer's error and its times."""

    baseline: Callable[[Contestant], Contestant]
    refusals: dict[Contestant, str]
    errors: dict[Contestant, str]
    timings: dict[str, dict[Contestant, Timing]]  # by pass


def measure(stage: Stage, everyone: Sequence[Contestant], seconds: float, laps: int) -> Outcome:
    """Check everyone, then time those who pass. A wrong peer is timed and marked; a wrong kernel of ours is not."""
    refusals, errors = {}, {}
    for contestant in everyone:
        try:
            refusal = stage.unsupported(contestant)
            if refusal is None:
                stage.check(contestant)
            else:
                refusals[contestant] = refusal
        except Refused as refused:
            refusals[contestant] = str(refused)
        except AssertionError as error:
            errors[contestant] = str(error)
        except Exception as error:  # must not end the others' race; ours fails its own test with it
            reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
            (errors if contestant.ours else refusals)[contestant] = reason
    stage.free()
    racers = [c for c in everyone if c not in refusals and not (c in errors and c.ours)]
    timings = {}
    for which in stage.passes:
        calls = {contestant: stage.call(which, contestant) for contestant in racers}
        timings[which] = race(calls, stopwatch_for(stage.device), seconds, laps) if calls else {}
    return Outcome(stage.baseline, refusals, errors, timings)
