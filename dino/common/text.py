"""Words for error messages."""

from __future__ import annotations

from collections.abc import Iterable


def shorten(parts: Iterable[str], most: int = 8) -> str:
    """A list as text that stays readable when it is long."""
    parts = list(parts)
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")
