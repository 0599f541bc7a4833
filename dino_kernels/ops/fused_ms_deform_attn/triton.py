"""Triton backend: not written yet. It says so wherever it would be chosen."""

from __future__ import annotations

from torch import Tensor


def unsupported(value: Tensor, *rest: object) -> str | None:
    """Why the Triton kernel cannot run this call."""
    return "the Triton kernel of this op is not written yet"
