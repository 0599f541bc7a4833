"""Check and time one job of matching."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.matching.gate import assert_right
from benchmarks.matching.peers import BASELINES, Matcher, MatchingInputs, matchers
from benchmarks.matching.workloads import ASSIGNMENT
from benchmarks.measure.race import Call
from benchmarks.measure.stage import Contestant, Refused, Stage


class MatchingStage(Stage):
    """One op on one step's inputs.

    Args:
        slowest_s: those whose call takes longer are refused, except the baseline.
        most_pairs: peers that would compute the cost of more pairs are refused.
    """

    def __init__(
        self,
        op: str,
        inputs: MatchingInputs,
        slowest_s: float = math.inf,
        most_pairs: float = math.inf,
        known: Mapping[str, Matcher] | None = None,
    ) -> None:
        super().__init__(op, inputs.step.id, inputs.logits.device.type, (op,))
        self.inputs, self.slowest_s, self.most_pairs = inputs, slowest_s, most_pairs
        self.known = matchers() if known is None else known

    def contestants(self) -> list[Contestant]:
        """Return everyone who has this job."""
        return [Contestant(name, ours=m.ours) for name, m in self.known.items() if self.op in m.ops]

    def baseline(self, contestant: Contestant) -> Contestant:
        return Contestant(BASELINES[self.op])

    def unsupported(self, contestant: Contestant) -> str | None:
        # Peers compute the cost of every query with every target of the whole batch.
        if not contestant.ours and self.op != ASSIGNMENT and self.inputs.step.all_pairs > self.most_pairs:
            return f"it would compute more than {self.most_pairs:,} pairs, most of them of two images; use --full"
        return self.known[contestant.implementation].unsupported(self.op, self.inputs)

    def check(self, contestant: Contestant) -> None:
        """Check the second call: a cache must not spoil it, and the first may compile.

        On a CPU nothing compiles, and a slow one is not called twice.
        """
        matcher, took = self.known[contestant.implementation], 0.0
        for _ in range(2):
            start = time.perf_counter()
            result = matcher.run(self.op, self.inputs)
            if self.device == "cuda":
                torch.cuda.synchronize()  # an illegal access is this contestant's, not the next one's
            took = time.perf_counter() - start
            if self.device != "cuda" and took > self.slowest_s:
                break
        assert_right(matcher, self.op, self.inputs, result)
        if took > self.slowest_s and contestant != self.baseline(contestant):
            raise Refused(f"a call takes more than {self.slowest_s:g} s; use --full")

    def call(self, which: str, contestant: Contestant) -> Call:
        return partial(self.known[contestant.implementation].run, self.op, self.inputs)

    def about(self, contestant: Contestant) -> dict[str, Any]:
        return super().about(contestant) | {"dtype": "fp32"}
