"""Check, time and count the steps of attention; what `python -m` of a step prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from dino_kernels.testing import Case
from dino_kernels.tutorial.attention.problem import DECODER, ENCODER, Problem, definition, error, gradients, problem
from dino_kernels.tutorial.counting import count, in_turns, size
from dino_kernels.tutorial.native import CompilerMissing

LOOP_QUERIES = 16  # step 1 takes seconds for a few


@dataclass(frozen=True)
class Step:
    """A step in one dtype."""

    label: str
    module: str
    before: str | None  # label of the step that it is compared with
    backward: bool = True
    before_backward: str | None = None  # where `before` has no backward
    dtype: torch.dtype = torch.float32
    devices: tuple[str, ...] = ("cpu",)

    def attend(self, given: Problem) -> Tensor:
        """Return what the step computes, [B, Q, M * D]."""
        return import_module(f"dino_kernels.tutorial.attention.{self.module}").attend(given)

    def predecessor(self, backward: bool) -> Step | None:
        """Return the step that this one is compared with in a pass."""
        return STEPS.get((backward and self.before_backward) or self.before or "")

    def why(self, given: Problem) -> str:
        """Return the step's own count."""
        return import_module(f"dino_kernels.tutorial.attention.{self.module}").why(given)


BOTH, GPU = ("cpu", "cuda"), ("cuda",)
STEPS = {
    step.label: step
    for step in (
        Step("grid_sample", "definition", None, devices=("cpu", "cuda")),
        Step("1 loop", "step1_loop", None, backward=False),
        Step("2 vectors", "step2_vectors", "1 loop", devices=BOTH),
        Step("3 fused softmax", "step3_softmax", "2 vectors", backward=False),
        Step("4 row by row", "step4_rows", "3 fused softmax", before_backward="2 vectors"),
        Step("4 row by row, Triton", "triton_rows", "2 vectors", backward=False, devices=GPU),
        Step("4 row by row, CUDA", "cuda_rows", "2 vectors", backward=False, devices=GPU),
        Step("5 no atomics", "step5_owners", "4 row by row"),
        Step("6 tiles", "step6_tiles", "5 no atomics"),
        Step("7 16 bits", "step7_sixteen_bits", "6 tiles", dtype=torch.bfloat16),
        Step("8 kernel, 16 bits", "step8_kernel", "7 16 bits", dtype=torch.bfloat16, devices=BOTH),
        Step("8 kernel, float32", "step8_kernel", "6 tiles", devices=BOTH),
    )
}


def ready(step: Step, given: Problem, backward: bool, grad_output: Tensor) -> Callable[[], object]:
    """Return one pass of a step, ready to be timed."""
    if backward:
        leaves = given.to(step.dtype).requires_grad(reference_points=False)
        return lambda: gradients(step.attend(leaves), leaves, grad_output)
    return partial(torch.no_grad()(step.attend), given.to(step.dtype))


def measure(step: Step, case: Case, device: str = "cpu") -> str:
    """Return what is printed of a step on a case."""
    loop = step.label == "1 loop" or (step.before == "1 loop" and device == "cpu")
    whole = problem(case, step.dtype, device)
    given = whole.first(LOOP_QUERIES) if loop else whole
    exact = definition(given)
    lines = [f"{case.name}, {device}" + (f", its first {LOOP_QUERIES} queries alone" if loop else "")]
    passes = [False, True] if step.backward and not loop else [False]
    grad_output = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(device)
    for backward in passes:
        before = step.predecessor(backward)
        racers = [s for s in (before, step) if s and device in s.devices]
        times = in_turns({s.label: ready(s, given, backward, grad_output) for s in racers}, device)
        both = "forward and backward" if backward else "forward"
        timed = ", ".join(f"{label} {1e3 * seconds:.3g} ms" for label, seconds in times.items())
        gain = f": {times[racers[0].label] / times[step.label]:.2f} times as fast" if len(racers) == 2 else ""
        lines.append(f"  {both:20} {timed}{gain}")
    with torch.no_grad():
        lines.append(f"  {'largest error':20} {error(step.attend(given), exact):.1e} of the largest number")
    leaves = given.requires_grad(reference_points=False)
    counts = count(partial(step.attend, leaves), [*leaves.inputs, *([] if given.mask is None else [given.mask])])
    lines.append(
        f"  {'counted':20} {counts.operations} operations allocate {size(counts.allocated)}; "
        f"kept for the backward: {size(counts.saved) if step.backward else 'no backward'}"
    )
    lines.append(f"  {'why':20} {step.why(given)}")
    return "\n".join(lines)


def main(module: str) -> None:
    """Check a step against the definition, and print its times, errors and counts; one thread."""
    torch.set_num_threads(1)
    for step in (step for step in STEPS.values() if step.module == module):
        print(f"\nStep {step.label}")
        devices = [device for device in step.devices if device == "cpu" or torch.cuda.is_available()]
        try:
            for case in (ENCODER, DECODER):
                for device in devices:
                    print(measure(step, case, device), flush=True)
        except CompilerMissing as missing:
            print(f"  not run: {missing}")
        if not devices:
            print("  needs a GPU, and torch.cuda.is_available() is False; the tests run it on a CPU")
