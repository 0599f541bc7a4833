"""Check the installed kernels on small inputs, without the tests: `python -m dino_kernels --check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import dino_kernels
from dino_kernels import explain, hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing.attention import CASES, DTYPES, assert_accurate, sample_inputs
from dino_kernels.testing.matching import ASSIGNMENT_CASES, MATCHING_CASES, assignment_costs, matching_inputs
from dino_kernels.testing.matching_accuracy import assert_cost_accurate, assert_same_bits

# Each kind of input once: masks and boxes, points per level, channels without a specialised kernel, borders and NaN.
CHECKED = {
    "levels_1", "decoder_few_queries", "rtdetr", "channels_3", "hostile_boxes", "hostile_masked", "no_queries",
    "middle", "saturated", "more_targets_than_queries", "no_targets",
    "random_tall", "integers_square", "forbidden", "hostile",
}  # fmt: skip


def check_kernels(device: str, begins: Callable[[str], None]) -> Iterator[tuple[str, str, str | None]]:
    """Check every backend that runs on a device, but the reference: attention by the tolerance rule against float64,
    forward and backward, matching by the reference's bits.

    Triton compiles each kind of call for seconds: of those it checks one per op and dtype in float32 and bfloat16.

    Args:
        begins: gets a line before each check.

    Returns:
        For each op and backend: its name, that of the backend, and the first wrong result, or None.
    """
    for op, backends in ops().items():
        for backend in backends.modules:
            if backend != "reference" and _reason(op, backend, device) is None:
                begins(f"{op} by {backend} on {device}{', compiling' if backend == 'triton' else ''} ...")
                yield op, backend, _first_error(op, backend, device)


def _first_error(op: str, backend: str, device: str) -> str | None:
    try:
        _CHECKS.get(op, _check_attention)(op, backend, device)
    except Exception as error:  # a kernel that raises or cannot be launched is a finding, too
        return f"{type(error).__name__}: {error}"
    return None


def _reason(op: str, backend: str, device: str) -> str | None:
    return explain(getattr(dino_kernels, op), **_inputs(op, device)).reasons[backend]


def _inputs(op: str, device: str) -> dict[str, Any]:
    if op == "linear_sum_assignment":
        return {"cost": torch.rand(1, 2, 4, device=device)}
    if op in _CHECKS:
        return matching_inputs(MATCHING_CASES[0].small(), device=device)
    return sample_inputs(op, CASES[0], torch.float32, device, requires_grad=False)


def _check_attention(op: str, backend: str, device: str) -> None:
    names, dtypes = CHECKED, list(DTYPES.values())
    if backend == "triton":
        names, dtypes = {"decoder_few_queries"}, [torch.float32, torch.bfloat16]
    for case in CASES:
        for dtype in dtypes:
            if case.name in names:
                assert_accurate(op, sample_inputs(op, case, dtype, device), backend)


def _check_cost(op: str, backend: str, device: str) -> None:
    for case in MATCHING_CASES:
        for dtype in DTYPES.values():
            if case.name in CHECKED:
                cost = matching_cost(**matching_inputs(case.small(), dtype, device), backend=backend)
                assert_cost_accurate(matching_inputs(case.small(), dtype), cost.cpu(), backend)


def _check_assignment(op: str, backend: str, device: str) -> None:
    for case in ASSIGNMENT_CASES:
        if case.name in CHECKED:
            cost = assignment_costs(case.small(), torch.float32)
            found = linear_sum_assignment(cost.to(device), full_output=True, backend=backend)
            _assert_same(found, linear_sum_assignment(cost, full_output=True, backend="reference"), op)


def _check_match(op: str, backend: str, device: str) -> None:
    for case in MATCHING_CASES:
        if case.name in CHECKED:
            inputs = matching_inputs(case.small(), device=device)
            cost, offsets = matching_cost(**inputs, backend=backend).cpu(), inputs["targets"].offsets
            expected = linear_sum_assignment(cost, offsets=offsets, full_output=True, backend="reference")
            _assert_same(hungarian_match(**inputs, full_output=True, backend=backend), expected, op)


def _assert_same(found: Any, expected: Any, op: str) -> None:
    """Compare all but the status, which for a matching also covers predictions and targets."""

    def results(some: Any) -> list[Tensor]:
        return [result for name, result in zip(some._fields, some, strict=True) if name != "status"]

    names = [f"{op}: {name}" for name in found._fields if name != "status"]
    assert_same_bits(results(found), results(expected), names)


_CHECKS = {
    "matching_cost": _check_cost,
    "linear_sum_assignment": _check_assignment,
    "hungarian_match": _check_match,
}
