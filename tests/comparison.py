"""Compare two calls that differ only in the order in which grad_value is summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dino_kernels.testing import Result, random_grad_output, run

# Backends that sum in one order. Others do with deterministic algorithms only.
ORDERED = ("reference", "cpu")
ROUNDINGS = 16  # of hundreds of terms, at random


def assert_same_bits(result: Result, expected: Result) -> None:
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        assert torch.equal(tensor, wanted), name


def assert_same_sums(sums: Tensor, expected: Tensor, magnitudes: Tensor, backend: str) -> None:
    """Assert the same bits, or on a GPU a few roundings of `magnitudes`, the sums of the terms' magnitudes."""
    if backend in ORDERED:
        assert torch.equal(sums, expected), "grad_value"
        return
    compute = torch.float64 if sums.dtype == torch.float64 else torch.float32
    allowed = ROUNDINGS * torch.finfo(compute).eps / 2 * magnitudes.double()
    if sums.dtype != compute:  # one more, to the dtype; a denormal's is absolute
        info = torch.finfo(sums.dtype)
        allowed += info.eps * torch.maximum(expected.double().abs(), magnitudes.new_tensor(info.tiny).double())
    error = (sums.double() - expected.double()).abs()
    assert (error <= allowed).all(), f"grad_value: {(error / allowed).nan_to_num().max():.3g} times the error allowed"
    assert torch.equal((sums == 0).all(-1), (expected == 0).all(-1)), "other rows are zero"


def magnitudes_of_sums(op: str, inputs: dict[str, Any], backend: str) -> Tensor:
    """Return grad_value with the terms' magnitudes summed; weights are not negative."""
    output = run(op, {k: v.detach() if isinstance(v, Tensor) else v for k, v in inputs.items()}, backend).output
    return run(op, inputs, backend, random_grad_output(output).abs()).grads["value"]


def assert_same_but_for_the_order_of_sums(
    op: str, inputs: dict[str, Any], backend: str, result: Result, expected: Result
) -> None:
    """Assert the bits of `expected`, the result of `inputs`, for all but grad_value."""
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        if name == "grad_value" and backend not in ORDERED:
            assert_same_sums(tensor, wanted, magnitudes_of_sums(op, inputs, backend), backend)
        else:
            assert torch.equal(tensor, wanted), name
