"""CUDA backend: not written yet. It says so wherever it would be chosen."""

from __future__ import annotations

from torch import Tensor


def unsupported(value: Tensor, *rest: object) -> str | None:
    """Why the CUDA kernel cannot run this call."""
    return "the CUDA kernel of this op is not written yet"
