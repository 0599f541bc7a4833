"""Text for messages: long lists, counts, percentages, suggestions."""

from __future__ import annotations

import difflib
import math
import shlex
import unicodedata
from collections.abc import Iterable


def shorten(parts: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """Return a list as text, with at most `most` parts and the number of the others."""
    texts = [str(part) for part in parts]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + rest


def command_line(*parts: object) -> str:
    """Return a command that can be pasted into a shell: `python -m dino` with quoted arguments."""
    return shlex.join(["python", "-m", "dino", *map(str, parts)])


def percent(value: float) -> str:
    """Return a fraction in percent with one decimal, without the sign; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: "1 box", "2 boxes", "1,200 images", "3 categories"; or with another `plural`."""
    if count == 1:
        return f"1 {noun}"
    if not plural:
        plural = f"{noun[:-1]}ies" if noun.endswith("y") else noun + ("es" if noun.endswith(("x", "s", "ch")) else "s")
    return f"{count:,} {plural}"


def columns(text: str) -> int:
    """Return the columns that a text takes in a terminal: East Asian letters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def memory_advice(options: Iterable[str]) -> str:
    """Return what to do when memory is exhausted: one of `options`."""
    return f"To use less memory, pass {' or '.join(options)}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` may be a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return " Perhaps you meant 'x'." with the known word that `word` may be a misspelling of, or nothing."""
    meant = closest(word, known)
    return f" Perhaps you meant {meant!r}." if meant else ""
