"""What the CUDA library can be told to do: which of several kernels to take, and for which size of device.

Until a GPU has decided, two kernels may stand side by side for one direction.
`dino_kernels.ops._core.libraries.CANDIDATES` names them by direction, and `choose_candidate(name)` is a context
manager that makes calls take one of them. With
`assume_multiprocessors(count)` calls take the kernels that they would get on a GPU with so many multiprocessors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from dino_kernels.ops._core import libraries

DIRECTIONS = ("forward", "backward")
# As many multiprocessors as make any call large, or any test's call small.
LARGE, SMALL = 1, 1_000_000
_REBUILD = "it comes from another commit; build the library again"


@dataclass(frozen=True)
class Candidate:
    """One of several kernels for the same calls."""

    direction: str
    name: str

    @property
    def id(self) -> str:
        return f"{self.direction} {self.name}"


def candidates() -> list[Candidate]:
    """Every kernel that can be chosen; none where the library has one kernel for each call."""
    named = getattr(libraries, "CANDIDATES", None) or {}
    unknown = sorted(set(named) - set(DIRECTIONS))
    if unknown:
        raise ValueError(f"libraries.CANDIDATES has directions {unknown}, allowed are {DIRECTIONS}")
    return [Candidate(direction, name) for direction in DIRECTIONS for name in named.get(direction, ())]


def chosen(candidate: Candidate) -> AbstractContextManager[object]:
    """Calls of the "cuda" backend take this kernel while it is entered, in all threads."""
    choose = getattr(libraries, "choose_candidate", None)
    if choose is None:
        raise RuntimeError(f"dino_kernels.ops._core.libraries cannot choose {candidate.id}: {_REBUILD}")
    return choose(candidate.name)


@contextmanager
def multiprocessors(count: int) -> Iterator[None]:
    """Calls of the "cuda" backend take the kernels of a GPU with `count` multiprocessors: 1 makes every call large.

    Raises:
        RuntimeError: the CUDA library cannot be told.
    """
    assume = getattr(libraries, "assume_multiprocessors", None)
    if assume is None:
        raise RuntimeError(f"dino_kernels.ops._core.libraries cannot assume {count} multiprocessors: {_REBUILD}")
    with assume(count):
        yield
