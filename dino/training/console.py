"""What a person watching a run sees: one updating line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_SMOOTHING = 0.97


class Console:
    """Writes lines, and a status that on a terminal is overwritten in place.

    Args:
        stream: where to write; None: nowhere.
        interval: seconds between status lines where the stream is not a terminal.
        clock: seconds from any start.
    """

    def __init__(
        self, stream: TextIO | None, *, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._interval = 0.2 if self._live else interval
        self._clock = clock
        self._next = -math.inf
        self._status_shown = False

    def say(self, text: str) -> None:
        """Write lines that stay."""
        if self._stream is None:
            return
        clear = "\r\x1b[K" if self._status_shown else ""
        self._status_shown = False
        print(f"{clear}{text}", file=self._stream, flush=True)

    def status(self, text: Callable[[], str]) -> None:
        """Show how the run stands, if it is time to; only then is `text` called."""
        if self._stream is None or self._clock() < self._next:
            return
        self._next = self._clock() + self._interval
        if not self._live:
            self.say(text())
            return
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{text()[:width]}")
        self._stream.flush()
        self._status_shown = True


class Pace:
    """Smoothed losses, images per second, and the time that a run still needs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sums: dict[str, tuple[float, float]] = {}
        self._last = math.nan  # the first step also warms up, and its time says nothing
        self._pauses: list[float] = []

    @property
    def known(self) -> bool:
        """Whether a step's time was taken yet."""
        return "_seconds" in self._sums

    def step(self, values: Mapping[str, float], images: int) -> None:
        """Take in a step's values; its time is that since the step before, or since the pause after that."""
        now = self._clock()
        seen = {**values, "_seconds": now - self._last, "_images": float(images)}
        self._last = now
        for name, value in seen.items():
            if math.isfinite(value):
                total, weight = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = _SMOOTHING * total + value, _SMOOTHING * weight + 1

    def pause(self) -> None:
        """Note that what happened since the last step was an evaluation, not a step."""
        now = self._clock()
        if math.isfinite(self._last):
            self._pauses.append(now - self._last)
        self._last = now

    def smoothed(self, name: str) -> float:
        """Exponential average of a value over the steps where it was finite; NaN before any."""
        total, weight = self._sums.get(name, (math.nan, 1.0))
        return total / weight

    @property
    def images_per_second(self) -> float:
        return self.smoothed("_images") / max(self.smoothed("_seconds"), 1e-9)

    def seconds_left(self, steps: int, pauses: int) -> float:
        """Seconds for so many more steps and evaluations."""
        pause = sum(self._pauses) / len(self._pauses) if self._pauses else 0.0
        return steps * self.smoothed("_seconds") + pauses * pause


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24} h"
