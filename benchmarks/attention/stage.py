"""Check and time one workload and op of deformable attention."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from benchmarks.attention import gate
from benchmarks.attention.peers import Implementation, implementations
from benchmarks.measure.race import Call
from benchmarks.measure.stage import Contestant, Stage
from dino_kernels.testing import Case

PASSES = FORWARD, BOTH = ("forward", "forward+backward")


def baseline(dtype: str) -> Contestant:
    """Return the reference that a contestant is compared with.

    In 16 bit the reference computes in float32 and converts, so the float32 reference is the stricter one.
    """
    return Contestant("reference", "fp64" if dtype == "fp64" else "fp32", ours=True)


def contestants(known: Mapping[str, Implementation], names: Sequence[str], dtypes: Sequence[str]) -> list[Contestant]:
    everyone = [Contestant(name, dtype, known[name].ours) for name in names for dtype in dtypes]
    return [c for c in everyone if c.implementation != "reference" or c == baseline(c.dtype)]


class AttentionStage(Stage):
    """One op and case; inputs of each dtype are drawn when they are first needed."""

    def __init__(self, op: str, case: Case, device: str, known: Mapping[str, Implementation] | None = None) -> None:
        super().__init__(op, case.id, device, PASSES)
        self.case, self.known = case, implementations() if known is None else known
        self.inputs = functools.cache(lambda dtype: gate.training_inputs(op, case, dtype, device))
        self.grad_output = functools.cache(lambda dtype: gate.output_gradient(case, dtype, device))
        self._reference = functools.cache(partial(self._run, "reference"))

    def baseline(self, contestant: Contestant) -> Contestant:
        return baseline(contestant.dtype)

    def unsupported(self, contestant: Contestant) -> str | None:
        return self.known[contestant.implementation].unsupported(self.op, self.inputs(contestant.dtype))

    def _run(self, name: str, dtype: str) -> gate.Result:
        return gate.forward_backward(self.known[name], self.op, self.inputs(dtype), self.grad_output(dtype))

    def check(self, contestant: Contestant) -> None:
        name, dtype = contestant.implementation, contestant.dtype
        if name == "reference":
            self._reference(dtype)
            return
        # Before anything is compared: whatever fails at full size must not fail first in the others' race.
        result = self._run(name, dtype)
        if self.device == "cuda":
            torch.cuda.synchronize()  # an illegal access is this contestant's, not the next one's
        gate.assert_right_in_miniature(self.known[name], self.op, self.case, dtype, self.device)
        if contestant.ours:
            label = f"{self.op} by {name} in {dtype}"
            gate.assert_right_at_full_size(label, self.case, dtype, result, self._reference(dtype))

    def free(self) -> None:
        self._reference.cache_clear()

    def call(self, which: str, contestant: Contestant) -> Call:
        run, dtype = self.known[contestant.implementation], contestant.dtype
        if which == FORWARD:
            return partial(gate.forward, run, self.op, self.inputs(dtype))
        return partial(gate.forward_backward, run, self.op, self.inputs(dtype), self.grad_output(dtype))
