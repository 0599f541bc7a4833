"""Fixtures of the contract files: every op on every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dino_kernels.testing import DTYPES
from tests.conftest import ALL_KERNELS, device_of
from tests.ops.contract.calls import OPS, Inputs
from tests.selection import INTERPRETED


@dataclass(frozen=True)
class Subject:
    """An op on a backend."""

    op: str
    backend: str
    require: Callable[[str, str, Inputs], None]

    def inputs(self, dtype: str | torch.dtype = torch.float32, **sizes: Any) -> Inputs:
        """Arguments of a call; skips the test if the backend cannot run it or the op has no such dtype."""
        op = OPS[self.op]
        if isinstance(dtype, str):
            if dtype not in op.dtypes:
                pytest.skip(f"{self.op} computes in float32 or float64 only")
            dtype = DTYPES[dtype]
        small = op.small if self.backend == INTERPRETED else {}
        inputs = op.make(self.op, device_of(self.backend), dtype, **{**small, **sizes})
        self.require(self.op, self.backend, inputs)
        return inputs


@pytest.fixture(params=OPS)
def any_op(request: pytest.FixtureRequest) -> str:
    """The name of every public op."""
    return request.param


@pytest.fixture(params=ALL_KERNELS)
def subject(request: pytest.FixtureRequest, any_op: str, require: Callable[[str, str, Inputs], None]) -> Subject:
    """Every op on every backend but the reference."""
    return Subject(any_op, request.param, require)


@pytest.fixture
def on_cpu(any_op: str, require: Callable[[str, str, Inputs], None]) -> Subject:
    """Every op on its CPU backend."""
    return Subject(any_op, "cpu", require)
