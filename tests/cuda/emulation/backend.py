"""`backend="emulated"`: the CUDA backend's own Python files over the emulated library, on CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from dino_kernels.ops._core import libraries
from tests.cuda.emulation.build import build
from tests.second_copy import second_copy

NAME = "emulated"
NAMESPACE = "dino_kernels_emulated"
# As the package's own library is.
SANITIZED = (libraries.build_info() or {}).get("sanitize") == "address"
_copy = functools.partial(second_copy, backend="cuda", name=NAME)


@functools.cache
def library() -> ctypes.CDLL:
    """The emulated library, compiled where it is not yet."""
    path = str(build(sanitize=SANITIZED))
    torch.ops.load_library(path)
    return ctypes.CDLL(path)


@contextmanager
def schedule(seed: int, of: ctypes.CDLL | None = None) -> Iterator[None]:
    """On this Python thread, CUDA threads and blocks take turns in an order drawn from `seed`; 0: in order.

    Args:
        seed: the same gives the same order, from here on.
        of: a library with its own emulation; usually the one with the ops' kernels.
    """
    chosen = of or library()
    chosen.emulation_set_schedule(ctypes.c_uint64(seed))
    try:
        yield
    finally:
        chosen.emulation_set_schedule(ctypes.c_uint64(0))


@contextmanager
def multiprocessors(count: int) -> Iterator[None]:
    """A device of this size: what is small for it gets the kernels for small calls."""
    library().emulation_set_multiprocessors(count)
    try:
        yield
    finally:
        library().emulation_set_multiprocessors(1)


@contextmanager
def candidate(name: str) -> Iterator[None]:
    """One of `libraries.CANDIDATES` runs wherever it can."""
    library().emulation_choose_candidate(libraries.candidate_number(name))
    try:
        yield
    finally:
        library().emulation_choose_candidate(0)


def _refusal(what: str, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"the emulation runs on CPU tensors, {what} is on {device}"


@functools.cache
def modules() -> dict[str, ModuleType]:
    """The emulated backend of each op."""
    library()
    classic = _copy("ms_deform_attn", NATIVE=NAMESPACE)
    cost = _copy("matching_cost", NATIVE=NAMESPACE)
    limits, limits_of_cost = classic.unsupported_sizes, cost.unsupported_sizes

    def unsupported(value: torch.Tensor, *rest: Any) -> str | None:
        return _refusal("value", value.device) or limits(rest[3])

    def unsupported_cost(logits: list[torch.Tensor], *rest: Any) -> str | None:
        return _refusal("logits", logits[0].device) or limits_of_cost(logits)

    def unsupported_assignment(cost: torch.Tensor, *rest: Any) -> str | None:
        return _refusal("cost", cost.device)

    vars(classic)["unsupported"] = unsupported
    vars(cost)["unsupported"] = unsupported_cost
    return {
        "ms_deform_attn": classic,
        "fused_ms_deform_attn": _copy("fused_ms_deform_attn", NATIVE=NAMESPACE, unsupported=unsupported),
        "matching_cost": cost,
        "linear_sum_assignment": _copy("linear_sum_assignment", NATIVE=NAMESPACE, unsupported=unsupported_assignment),
        "hungarian_match": _copy("hungarian_match", NATIVE=NAMESPACE, unsupported=unsupported_cost),
    }
