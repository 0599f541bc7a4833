"""Describe what is wrong with an annotation file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_MAX_LINES = 10


class DatasetError(ValueError):
    """An annotation file, or a folder of data, that cannot be used as it is."""


@dataclass(frozen=True)
class Problem:
    """One invalid entry."""

    collection: str
    """"images", "annotations" or "categories"."""
    kind: str
    """Problems of a kind are counted together, for example "negative width"."""
    where: str
    """The entry, for example "annotation 4711 (image 12, cat.jpg)"."""
    what: str
    """For example "bbox [3, 9, -2, 5] has negative width"."""


def describe(file: str | Path, problems: Iterable[Problem], totals: Mapping[str, int], *, advice: bool) -> list[str]:
    """Return a line for each kind of problem, with its first case and its count: at most ten, and a line for the rest.

    Args:
        file: the annotation file; its name begins each line.
        problems: the problems in the order of the file.
        totals: number of entries in each collection.
        advice: whether each line ends with how to fix it.
    """
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.collection, problem.kind), []).append(problem)
    lines = []
    for (collection, _), group in list(groups.items())[:_MAX_LINES]:
        count = f"{len(group)} of {totals[collection]} {collection}"
        end = (
            f"{count}. Fix {'it' if len(group) == 1 else 'them'} or pass --skip-invalid"
            if advice
            else f"Skipped {count}"
        )
        lines.append(f"{Path(file).name}: {group[0].where}: {group[0].what}. {end}.")
    if len(groups) > _MAX_LINES:
        rest = sum(len(group) for group in list(groups.values())[_MAX_LINES:])
        lines.append(f"{Path(file).name}: and {rest} problems of {len(groups) - _MAX_LINES} other kinds.")
    return lines


def shown(value: object, limit: int = 80) -> str:
    """Return a value of the file as text, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
