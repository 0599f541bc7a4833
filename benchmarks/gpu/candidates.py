"""Measure kernels that stand side by side until a GPU has decided, each on the same calls."""

from __future__ import annotations

from functools import partial

from benchmarks.attention.candidates import Candidate, candidates, chosen
from benchmarks.attention.peers import implementations
from benchmarks.attention.stage import BOTH, FORWARD, AttentionStage
from benchmarks.gpu import timing
from benchmarks.gpu.isolated import Reporter
from benchmarks.gpu.timing import KERNELS
from benchmarks.measure.race import Call
from benchmarks.measure.stage import Contestant
from dino_kernels.testing import Case

# The pass in which a direction's kernel runs.
PASS_OF = {"forward": FORWARD, "backward": BOTH}


class CandidateStage(AttentionStage):
    """The CUDA backend, with one candidate chosen for each contestant."""

    def __init__(self, op: str, case: Case, dtype: str, device: str, direction: str) -> None:
        everyone = implementations()
        backend = everyone["cuda" if device == "cuda" else "cpu"]
        self.candidates: dict[Contestant, Candidate] = {
            Contestant(f"cuda-{direction}-{candidate.name}", dtype, ours=True): candidate
            for candidate in candidates()
            if candidate.direction == direction
        }
        super().__init__(op, case, device, everyone | {c.implementation: backend for c in self.candidates})
        self.passes = (PASS_OF[direction],)

    def check(self, contestant: Contestant) -> None:
        with chosen(self.candidates[contestant]):
            super().check(contestant)

    def call(self, which: str, contestant: Contestant) -> Call:
        return partial(_with, self.candidates[contestant], super().call(which, contestant))

    def about(self, contestant: Contestant) -> dict[str, str]:
        candidate = self.candidates[contestant]
        return super().about(contestant) | {"direction": candidate.direction, "candidate": candidate.name}


def _with(candidate: Candidate, call: Call) -> object:
    with chosen(candidate):
        return call()


def speed(reporter: Reporter, op: str, case: Case, dtype: str, device: str, seconds: float, laps: int) -> None:
    """Check every candidate and time it, without launches and in a CUDA graph."""
    for direction in PASS_OF:
        stage = CandidateStage(op, case, dtype, device, direction)
        timing.speed(reporter, stage, list(stage.candidates), seconds, laps, kind="candidate", modes=(KERNELS,))
