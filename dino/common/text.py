"""Texts used by several commands."""

from __future__ import annotations

import math
from collections.abc import Iterable


def shorten(parts: Iterable[str], most: int = 8) -> str:
    """Return a list as text, with at most `most` parts and the number of the others."""
    parts = list(parts)
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def percent(value: float) -> str:
    """Return a fraction in per cent with one decimal; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def memory_advice(options: Iterable[str]) -> str:
    """Return what to do when memory is exhausted: one of `options`."""
    return f"To use less memory, pass {' or '.join(options)}"
