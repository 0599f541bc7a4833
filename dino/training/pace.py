"""Measure how long a training waits for images, and notice one that waits more than it computes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

_STEPS = 10
_TOO_LONG = 3.0
_STEPS_OF_WAITING = 50
_MUCH_WAITING = 0.2

Item = TypeVar("Item")


class Pace:
    """Compares the time of steps with the waiting for images, and the first ones' with the processor's time."""

    def __init__(self) -> None:
        self._steps = 0
        self._started = 0.0, 0.0
        self._waited = 0.0
        self._window = 0.0, 0.0  # seconds of the steps since the first, and of their waiting
        self._advised = False

    def watch(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, and count the seconds until each."""
        iterator = iter(batches)
        while True:
            before = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - before
            yield batch

    def waited(self) -> float:
        """Return the seconds of waiting since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def advice(self, device: torch.device, seconds: float, waited: float, workers: int) -> str | None:
        """Count a step of some seconds of which some were waiting; return a line of advice, of each kind once.

        Kinds are: of 50 steps a fifth or more was waiting; and on a CPU, the first ten steps took three times the
        processor's time.
        """
        now = time.monotonic(), time.process_time()
        self._steps += 1
        if self._steps == 1:  # which also loads and compiles
            self._started = now
            return None
        self._window = self._window[0] + seconds, self._window[1] + waited
        if (self._steps - 1) % _STEPS_OF_WAITING == 0:
            (wall, waiting), self._window = self._window, (0.0, 0.0)
            if waiting >= _MUCH_WAITING * wall and not self._advised:
                self._advised = True
                return (
                    f"waiting: {waiting / wall:.0%} of the last {_STEPS_OF_WAITING} steps was waiting for images. Use "
                    f"more --workers (now {workers}), smaller image files or a faster disk"
                )
        if self._steps != 1 + _STEPS or device.type != "cpu":
            return None
        wall, used = (after - before for after, before in zip(now, self._started, strict=True))
        if wall < _TOO_LONG * used:
            return None
        return (
            f"slow: {_STEPS} steps took {wall:.1f} s, in which this process computed for {used:.1f} s. Either other "
            "programs use the processor, or the steps wait for images (more --workers)"
        )
