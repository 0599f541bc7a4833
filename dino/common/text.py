"""Words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MEMORY_ADVICE = "What helps: --amp bf16, a smaller --short-side and --long-side, --batch-size 1, --device cpu"


def shorten(parts: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """Join a list into text that stays readable when it is long."""
    texts = [str(part) for part in parts]
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join(texts[:most]) + (" " if separator == ", " and rest else separator if rest else "") + "".join(rest)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed word, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def percent(value: float) -> str:
    """Return a share as percent with one decimal; "-" for a metric without a value, which COCO stores as -1."""
    return f"{100 * value:.1f}" if value >= 0 else "-"
