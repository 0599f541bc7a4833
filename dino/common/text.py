"""Text for messages: long lists, counts, percentages, suggestions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def shorten(parts: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """Return a list as text, with at most `most` parts and the number of the others."""
    texts = [str(part) for part in parts]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + rest


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun, for example "1 image" or "1,200 images".

    Args:
        plural: the default is the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def percent(value: float) -> str:
    """Return a fraction in percent with one decimal, without the sign; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def memory_advice(options: Iterable[str]) -> str:
    """Return what to do when memory is exhausted: one of `options`."""
    return f"To use less memory, pass {' or '.join(options)}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` may be a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
