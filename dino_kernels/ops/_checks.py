"""Checks of options: choices, flags, counts and numbers. Errors name the argument, the value and the allowed values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def check_choice(op: str, name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a value is one of some names."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        names = [repr(each) for each in allowed]
        few = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) < 4 else f"one of {', '.join(names)}"
        raise ValueError(f"{op}: {name} must be {few}, got {value!r}")


def check_flag(op: str, name: str, value: Any) -> None:
    """Check that a value is True or False."""
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_count(op: str, name: str, value: Any, least: int = 0) -> None:
    """Check that a value is an integer of at least so much."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")


def check_number(op: str, name: str, value: Any, least: float = -math.inf) -> None:
    """Check that a value is a finite number of at least so much."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not -math.inf < value < math.inf or value < least:  # torch.compile cannot trace math.isfinite
        allowed = "finite" if least == -math.inf else f"finite and at least {least:g}"
        raise ValueError(f"{op}: {name} must be {allowed}, got {value!r}")


def unknown_argument(op: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error for a keyword that an op does not have, with the closest one that it has."""
    known = tuple(known)
    close = difflib.get_close_matches(name, known, 1)
    advice = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(known)}."
    return TypeError(f"{op}: got an unknown argument {name!r}. {advice}")
