"""`backend="emulated"`: the CUDA backends over the emulated library, on CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops._core.native import Library
from tests.cuda.emulation.build import build

NAME = "emulated"
# Like the package's library.
SANITIZED = (libraries.build_info() or {}).get("sanitize") == "address"


@functools.cache
def library() -> ctypes.CDLL:
    """Return the emulated library; compile it if needed."""
    path = str(build(sanitize=SANITIZED))
    torch.ops.load_library(path)
    return ctypes.CDLL(path)


@contextmanager
def schedule(seed: int, of: ctypes.CDLL | None = None) -> Iterator[None]:
    """Run CUDA threads and blocks of this Python thread in a random order; 0: in order.

    Args:
        seed: of the order.
        of: a library with an emulation; None: the one with the ops' kernels.
    """
    chosen = of or library()
    chosen.emulation_set_schedule(ctypes.c_uint64(seed))
    try:
        yield
    finally:
        chosen.emulation_set_schedule(ctypes.c_uint64(0))


@contextmanager
def multiprocessors(count: int) -> Iterator[None]:
    """Emulate a device of this size, on which the choice of kernels for small and large calls depends."""
    library().emulation_set_multiprocessors(count)
    try:
        yield
    finally:
        library().emulation_set_multiprocessors(1)


@functools.cache
def modules() -> dict[str, Any]:
    """Return the emulated backend of each op."""
    library()
    emulated = Library("cpu", is_cuda=True, namespace="dino_kernels_emulated")
    return {op: type(backends.modules["cuda"])(emulated) for op, backends in ops().items()}
