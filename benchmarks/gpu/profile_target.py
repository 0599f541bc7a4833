"""Call one kernel, by its name in TARGETS, between a profiler's start and end.

    ncu --profile-from-start off python3 -m benchmarks.gpu.profile_target backward

The profile leaves out everything before, such as drawing inputs and the first calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch

import dino_kernels
from benchmarks.attention import gate
from benchmarks.attention.workloads import ENCODER_800x1333, miniature
from benchmarks.gpu.matching import STEPS
from benchmarks.gpu.matching import miniature as miniature_step
from benchmarks.matching.peers import MatchingInputs
from benchmarks.measure.race import Call

OP, DTYPE = "fused_ms_deform_attn", "bf16"


def forward(backend: str, device: str, small: bool) -> Call:
    """Return the forward of an encoder layer of one image."""
    inputs = gate.training_inputs(OP, _case(small), DTYPE, device)

    def call() -> object:
        with torch.no_grad():
            return dino_kernels.fused_ms_deform_attn(**inputs, backend=backend)

    return call


def backward(backend: str, device: str, small: bool) -> Call:
    """Return its backward alone."""
    inputs = gate.training_inputs(OP, _case(small), DTYPE, device)
    grad_output = gate.output_gradient(_case(small), DTYPE, device)
    output = dino_kernels.fused_ms_deform_attn(**inputs, backend=backend)
    leaves = [inputs[name] for name in gate.LEAVES if name in inputs]
    return partial(torch.autograd.grad, output, leaves, grad_output, retain_graph=True)


def matching(backend: str, device: str, small: bool, step: str, job: str) -> Call:
    """Return one job of matching."""
    inputs = MatchingInputs(miniature_step(STEPS[step]) if small else STEPS[step], device)
    if job == "linear_sum_assignment":
        cost, offsets = inputs.cost, inputs.packed.offsets
        return lambda: dino_kernels.linear_sum_assignment(cost, offsets=offsets, backend=backend)
    return lambda: dino_kernels.matching_cost(inputs.logits, inputs.boxes, inputs.packed, backend=backend)


def _case(small: bool):
    return miniature(ENCODER_800x1333) if small else ENCODER_800x1333


# By name: the backend, and the function that makes the call.
TARGETS: dict[str, tuple[str, Callable[..., Call]]] = {
    "backward": ("cuda", backward),
    "forward": ("cuda", forward),
    "triton backward": ("triton", backward),
    "matching_cost": ("cuda", partial(matching, step="7x16 T=20", job="matching_cost")),
    "assignment": ("cuda", partial(matching, step="7x16 T=20 early", job="linear_sum_assignment")),
}


def main(target: str) -> None:
    backend, make = TARGETS[target]
    call = make(backend, "cuda", small=False)
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in TARGETS]:
        raise SystemExit(
            f"usage: python -m benchmarks.gpu.profile_target TARGET; TARGET is one of {', '.join(TARGETS)}"
        )
    main(sys.argv[1])
