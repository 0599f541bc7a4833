"""Launches of the kernels in test_kernels.cu, in plain and in drawn orders."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from tests.cuda.emulation.backend import SANITIZED, schedule
from tests.cuda.emulation.build import build

SEEDS = range(1, 21)


@functools.cache
def kernels() -> ctypes.CDLL:
    """The kernels in emulation/test_kernels.cu."""
    return ctypes.CDLL(str(build("test_kernels", sanitize=SANITIZED)))


class Launch(ctypes.Structure):
    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_size_t))


Size = int | tuple[int, ...]


def launch(name: str, grid: Size, block: Size, given: Tensor, out: Tensor, n: int = 0, shared: int = 0) -> Tensor:
    """Run a kernel, which fills `out`.

    Raises:
        RuntimeError: the emulation found a mistake, or refused the launch.
    """
    sizes = [(*(size if isinstance(size, tuple) else (size,)), 1, 1)[:3] for size in (grid, block)]
    function = getattr(kernels(), f"run_{name}")
    function.restype = ctypes.c_char_p
    how = Launch((ctypes.c_uint * 3)(*sizes[0]), (ctypes.c_uint * 3)(*sizes[1]), shared)
    error = function(ctypes.byref(how), ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()), n)
    if error is not None:
        raise RuntimeError(error.decode())
    return out


def in_every_order(call: Callable[[], Tensor]) -> list[Tensor]:
    """Return the results in plain order, first, and in drawn ones."""
    results = []
    for seed in (0, *SEEDS):
        with schedule(seed, kernels()):
            results.append(call())
    return results


def integers(*size: int, low: int = -1000, high: int = 1000) -> Tensor:
    return torch.randint(low, high, size, generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32)


def same_numbers(bits: Tensor, expected: Tensor) -> bool:
    """Whether the bits are the same, except that any NaN is as good as another."""
    got = bits.view(expected.dtype)
    return bool(((bits == expected.view(bits.dtype)) | (got.isnan() & expected.isnan())).all())
