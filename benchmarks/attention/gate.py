"""Check a kernel before it is timed: in miniature by the tolerance rule, at full size against the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.peers import Implementation
from benchmarks.attention.workloads import miniature
from dino_kernels.testing import DTYPES, Case, Result, assert_result_accurate, sample_inputs
from dino_kernels.testing.accuracy import random_grad_output

# What training differentiates; reference points are constants or detached there.
LEAVES = ("value", "sampling_locations", "attention_weights", "sampling_offsets", "attention_logits")
# Largest error over largest entry, at full size against the reference on the same inputs: finds a missed tile
# or an overflowing index. The miniature checks rounding.
FULL_SIZE_TOLERANCE = {"fp64": 1e-8, "fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}


def training_inputs(op: str, case: Case, dtype: str, device: str) -> dict[str, Any]:
    """Draw the inputs that are timed on `device`: on one CPU thread an encoder layer takes seconds to draw."""
    inputs = sample_inputs(op, case, DTYPES[dtype], device, requires_grad=False, draw_on=device)
    for name in LEAVES:
        if name in inputs:
            inputs[name].requires_grad_()
    return inputs


def output_gradient(case: Case, dtype: str, device: str) -> Tensor:
    """Draw a gradient of the output, [B, Q, M * D], on `device`; all dtypes get the same numbers, rounded."""
    generator = torch.Generator(device).manual_seed(1234)
    shape = case.batch, case.queries, case.heads * case.channels
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=device).to(DTYPES[dtype])


def forward(implementation: Implementation, op: str, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return implementation.run(op, inputs)


def forward_backward(
    implementation: Implementation, op: str, inputs: dict[str, Any], grad_output: Tensor | None = None
) -> Result:
    """Return the output and the gradients of every input that requires one."""
    output = implementation.run(op, inputs)
    if grad_output is None:
        grad_output = random_grad_output(output)
    names = [name for name, argument in inputs.items() if isinstance(argument, Tensor) and argument.requires_grad]
    grads = torch.autograd.grad(output, [inputs[name] for name in names], grad_output)
    return Result(output.detach(), dict(zip(names, grads, strict=True)))


def assert_right_in_miniature(implementation: Implementation, op: str, case: Case, dtype: str, device: str) -> None:
    """Apply the tolerance rule against float64 to the same call with smaller maps."""
    inputs = sample_inputs(op, miniature(case), DTYPES[dtype], device)
    assert_result_accurate(
        op, inputs, forward_backward(implementation, op, inputs), f"{implementation.name} in {dtype}"
    )


def assert_right_at_full_size(label: str, case: Case, dtype: str, result: Result, reference: Result) -> None:
    """Compare with the reference on the tensors that are timed: no entry may differ visibly."""
    problems = []
    for name, expected in reference.named().items():
        got = result.named()[name]
        if got.shape != expected.shape:
            problems.append(f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}")
            continue
        error, largest = (got.double() - expected).abs().max().item(), expected.abs().max().item()
        if not error <= FULL_SIZE_TOLERANCE[dtype] * largest:  # also true for NaN
            problems.append(f"{name}: largest error {error:.3g} where the largest entry is {largest:.3g}")
    if problems:
        raise AssertionError(
            f"{label} differs from the reference at full size ({case.id}):\n  " + "\n  ".join(problems)
        )
