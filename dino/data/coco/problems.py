"""Describe what is wrong with annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    """The entry, for example "annotation 4711 (image 12, cat.jpg)" or "line 3"."""
    what: str
    """For example "bbox [3, 9, -2, 5] has negative width"."""
    file: str = ""
    """The file of the entry, relative to the folder of the data."""


def describe(name: str, problems: Iterable[Problem], totals: Mapping[str, int], *, advice: str | None) -> list[str]:
    """Return a line for each kind of problem, with its first case and its count: at most ten, and a line for the rest.

    Args:
        name: the annotations, for the line of the rest.
        problems: the problems in the order of the file.
        totals: number of entries in each collection.
        advice: what can be done besides mending the file, for example " or pass --skip-invalid"; None if the entries
            were skipped.
    """
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.collection, problem.kind), []).append(problem)
    lines = []
    for (collection, _), group in list(groups.items())[:_MAX_LINES]:
        first, count = group[0], f"{len(group)} of {totals[collection]} {collection}"
        end = f"Skipped {count}" if advice is None else f"{count}. Fix {'it' if len(group) == 1 else 'them'}{advice}"
        lines.append(f"{': '.join(part for part in (first.file, first.where, first.what) if part)}. {end}.")
    if len(groups) > _MAX_LINES:
        rest = sum(len(group) for group in list(groups.values())[_MAX_LINES:])
        lines.append(f"{name}: and {rest} problems of {len(groups) - _MAX_LINES} other kinds.")
    return lines


def shown(value: object, limit: int = 80) -> str:
    """Return a value of the file as text, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
