"""Backends over the compiled kernels: one object per op and library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from dino_kernels.ops._core import libraries


class Library(NamedTuple):
    """The kernels of all ops, compiled for one kind of device."""

    device: str  # type of the tensors that the kernels take
    is_cuda: bool  # compiled from the CUDA sources: the kernels have limits and sum in any order
    namespace: str = "dino_kernels_native"  # of the ops in torch.ops


CPU, CUDA = Library("cpu", False), Library("cuda", True)


class NativeBackend:
    """The kernels of one op in one library.

    A subclass per op has `forward`, `backward` if the op is differentiable, and these class attributes:

        native_ops: names in csrc/ops.cpp; `self.kernels` has the ops in the same order.
        first_argument: name of the argument whose device is that of the call.
    """

    native_ops: tuple[str, ...]
    first_argument: str

    def __init__(self, library: Library) -> None:
        self.library = library

    @functools.cached_property
    def kernels(self) -> tuple[Callable[..., Any], ...]:
        """The native ops, looked up once."""
        ops = getattr(torch.ops, self.library.namespace)
        return tuple(getattr(ops, name).default for name in self.native_ops)

    def unsupported(self, arguments: Any) -> str | None:
        """Return why the kernels cannot run this call, or None."""
        library, first = self.library, arguments[0]
        device = (first[0] if isinstance(first, list) else first).device
        if device.type != library.device:
            return f"it runs on {library.device.upper()} tensors, {self.first_argument} is on {device}"
        if not library.is_cuda:
            return libraries.CPU_MISSING
        if device.type == "cuda":  # otherwise the kernels are emulated by the tests
            missing = libraries.CUDA_MISSING or libraries.unsupported_gpu(device.index)
            if missing is not None:
                return missing
        return self.exceeded_limit(arguments)

    def exceeded_limit(self, arguments: Any) -> str | None:
        """Return which limit of the CUDA kernels a call exceeds, or None."""
        return None
