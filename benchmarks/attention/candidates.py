"""Choose what CUDA calls use: one of several kernels, or the kernels of another size of GPU.

Until a GPU has decided, two kernels may stand side by side for one direction.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from dino_kernels.ops._core import libraries

# As many multiprocessors as make any call large, or any test's call small.
LARGE, SMALL = 1, 1_000_000
# Makes "cuda" calls use the kernels of a GPU with so many multiprocessors while it is entered.
multiprocessors = libraries.assume_multiprocessors


@dataclass(frozen=True)
class Candidate:
    """One of several kernels for the same calls."""

    direction: str  # "forward" or "backward"
    name: str

    @property
    def id(self) -> str:
        return f"{self.direction} {self.name}"


def candidates() -> list[Candidate]:
    """Return every kernel that can be chosen."""
    return [Candidate(direction, name) for direction, names in libraries.CANDIDATES.items() for name in names]


def chosen(candidate: Candidate) -> AbstractContextManager[object]:
    """Make "cuda" calls use this kernel while it is entered, in all threads."""
    return libraries.choose_candidate(candidate.name)
