"""Helpers for tests of the eager path, which skips the registered ops."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dino_kernels.ops._core import eager
from dino_kernels.testing import Result, run


def eager_op(op: str) -> Any:
    return importlib.import_module(f"dino_kernels.ops.{op}")._op


def forget_calls() -> None:
    """Make the next call of each op a first one."""
    for op in ("ms_deform_attn", "fused_ms_deform_attn"):
        eager_op(op)._seen._calls = ()


def registered(function: Callable[[], Any]) -> set[str]:
    """Return the names of the registered ops that a function calls, from PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    names = [event.name for event in profile.events() or ()]
    return {name.partition("::")[2] for name in names if name.startswith("dino_kernels::")}


@contextmanager
def registered_ops_only() -> Iterator[None]:
    """Behave as under a torch without the means to recognise ordinary calls."""
    available, eager._AVAILABLE = eager._AVAILABLE, False
    try:
        yield
    finally:
        eager._AVAILABLE = available


def by_registered_ops(op: str, inputs: dict[str, Any], backend: str = "auto") -> Result:
    with registered_ops_only():
        return run(op, inputs, backend)


def assert_equal(result: Result, expected: Result) -> None:
    assert result.named().keys() == expected.named().keys()
    for (name, tensor), other in zip(result.named().items(), expected.named().values(), strict=True):
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        torch.testing.assert_close(tensor, other, msg=lambda text, name=name: f"{name}: {text}")


def kept(op: str) -> int:
    return len(eager_op(op)._seen._calls)


class Seen(TorchDispatchMode):
    """A dispatch mode that stores the names of ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
