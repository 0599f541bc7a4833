"""Calls of `linear_sum_assignment`, and SciPy's results."""

from __future__ import annotations

from typing import Any

import scipy.optimize
import torch
from torch import Tensor

from dino_kernels import linear_sum_assignment
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.testing import assert_same_bits

SLOW = ("emulated", "interpreted")
TIES = ("lowest", "scipy")


def solve(cost: Tensor, backend: str, *rest: Any, **options: Any) -> Assignment:
    return linear_sum_assignment(cost, *rest, full_output=True, backend=backend, **options)


def assert_same(result: Assignment, expected: Assignment) -> None:
    assert_same_bits(result, expected, Assignment._fields)


def sized(case: Any, backend: str) -> Any:
    return case.small() if backend in SLOW else case


def scipy_columns(matrix: Tensor, maximize: bool = False) -> Tensor:
    """Return the column of each row by SciPy in float64, -1 if none."""
    rows, columns = scipy.optimize.linear_sum_assignment(matrix.double().cpu().numpy(), maximize)
    result = torch.full((matrix.shape[0],), -1)
    result[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return result


def total(matrix: Tensor, columns: Tensor) -> float:
    rows = (columns >= 0).nonzero()[:, 0]
    return float(matrix.double()[rows, columns[rows]].sum())
