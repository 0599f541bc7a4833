"""Describe what is wrong with annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_LINES = 10
_MOST_LISTED = 1000


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


class Problems:
    """Invalid entries in the order of the file: of each kind the first thousand and the count of all."""

    def __init__(self, problems: Iterable[Problem] = (), counts: Mapping[tuple[str, str], int] | None = None) -> None:
        self._listed: list[Problem] = []
        self._counts: dict[tuple[str, str], int] = {}
        for problem in problems:
            self.add(problem)
        self._counts |= counts or {}

    def add(self, problem: Problem) -> None:
        kind = (problem.collection, problem.kind)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= _MOST_LISTED:
            self._listed.append(problem)

    def __add__(self, other: Problems) -> Problems:
        counts = {kind: self._counts.get(kind, 0) + other._counts.get(kind, 0) for kind in self._counts | other._counts}
        return Problems([*self._listed, *other._listed], counts)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._listed)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def count(self, collection: str) -> int:
        """Return the number of invalid entries of a collection."""
        return sum(count for (of, _), count in self._counts.items() if of == collection)

    def describe(self, name: str, totals: Mapping[str, int], *, advice: str | None) -> list[str]:
        """Return a line for each kind, with its first case and its count: at most ten, and a line for the rest.

        Args:
            name: the annotations, for the line of the rest.
            totals: number of entries in each collection.
            advice: what can be done besides mending the file, for example " or pass --skip-invalid"; None if the
                entries were skipped.
        """
        firsts: dict[tuple[str, str], Problem] = {}
        for problem in self._listed:
            firsts.setdefault((problem.collection, problem.kind), problem)
        lines = []
        for kind, first in list(firsts.items())[:_MAX_LINES]:
            number = self._counts[kind]
            count = f"{number} of {totals[first.collection]} {first.collection}"
            end = f"Skipped {count}" if advice is None else f"{count}. Fix {'it' if number == 1 else 'them'}{advice}"
            lines.append(f"{': '.join(part for part in (first.file, first.where, first.what) if part)}. {end}.")
        if len(firsts) > _MAX_LINES:
            rest = sum(self._counts[kind] for kind in list(firsts)[_MAX_LINES:])
            lines.append(f"{name}: and {rest} problems of {len(firsts) - _MAX_LINES} other kinds.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "listed": [dataclasses.astuple(problem) for problem in self._listed],
            "counts": [[*kind, count] for kind, count in self._counts.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Problems:
        """Read what `to_json` returned."""
        counts = {(collection, kind): count for collection, kind, count in content["counts"]}
        return cls([Problem(*values) for values in content["listed"]], counts)


def shown(value: object, limit: int = 80) -> str:
    """Return a value of the file as text, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
