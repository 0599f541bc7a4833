"""Check, time and count the steps of matching; what `python -m` of a step prints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch

from dino_kernels.tutorial.counting import in_turns
from dino_kernels.tutorial.matching.problem import COCO, COLLAPSED, CROWD, Matching, step, total, violation
from dino_kernels.tutorial.matching.problem import Step as Given
from dino_kernels.tutorial.native import CompilerMissing

CASES = (COCO, CROWD, COLLAPSED)
# Of the total cost; SciPy works in float64, too.
ALLOWED = 1e-9


@dataclass(frozen=True)
class Step:
    """A step and the one before."""

    label: str
    module: str
    before: str | None
    function: str = "match"

    def match(self, given: Given) -> Matching:
        """Return the query of each target."""
        return getattr(import_module(f"dino_kernels.tutorial.matching.{self.module}"), self.function)(given)

    def why(self, given: Given) -> str:
        """Return the step's own count."""
        return import_module(f"dino_kernels.tutorial.matching.{self.module}").why(given)


STEPS = {
    step.label: step
    for step in (
        Step("1 SciPy", "step1_scipy", None),
        Step("2 row minima", "step2_minima", "1 SciPy"),
        Step("3 conflicts alone", "step3_conflicts", "2 row minima"),
        Step("4 batch", "step4_batch", "3 conflicts alone"),
        Step("5 device", "step5_device", "4 batch"),
        Step("5 device, costs too", "step5_device", None, "match_predictions"),
    )
}


def excess(given: Given, found: Matching) -> float:
    """Return how much more the pairs cost than SciPy's, relative to the sum."""
    best = total(given, STEPS["1 SciPy"].match(given).query_idx)
    return (total(given, found.query_idx) - best) / max(abs(best), 1.0)


def main(module: str) -> None:
    """Check a step against SciPy, check its proof, and print times and counts; one thread."""
    torch.set_num_threads(1)
    for this in (each for each in STEPS.values() if each.module == module):
        print(f"\nStep {this.label}")
        try:
            show(this)
        except CompilerMissing as missing:
            print(f"  not run: {missing}")


def show(this: Step) -> None:
    """Check a step on every case, and print its times, proof and counts."""
    for case in CASES:
        given = step(case)
        found = this.match(given)
        assert abs(excess(given, found)) <= ALLOWED, f"step {this.label} is wrong by {excess(given, found)}"
        racers = [STEPS[label] for label in (this.before, this.label) if label]
        times = in_turns({each.label: partial(each.match, given) for each in racers})
        timed = ", ".join(f"{label} {1e3 * seconds:.3g} ms" for label, seconds in times.items())
        gain = f": {times[racers[0].label] / times[this.label]:.2f} times as fast" if this.before else ""
        proof = f"duals miss by {violation(given, found):.1e}" if found.target_duals is not None else "no duals"
        print(f"{case.name}: {given.cost.shape[0]} sets, images of {', '.join(map(str, given.counts))} targets")
        print(f"  time    {timed}{gain}\n  proof   {proof}; costs {excess(given, found):+.1e} more than SciPy's")
        print(f"  why     {this.why(given)}", flush=True)
