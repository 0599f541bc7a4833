"""Notice a training that waits more than it computes."""

from __future__ import annotations

import time

import torch

_STEPS = 10
_TOO_LONG = 3.0


class Pace:
    """Compares the first steps' time with the processor's time that this process used."""

    def __init__(self) -> None:
        self._steps = 0
        self._started = 0.0, 0.0

    def advice(self, device: torch.device) -> str | None:
        """Count a step; after ten, on a CPU, return a line if they took three times the processor's time."""
        now = time.monotonic(), time.process_time()
        self._steps += 1
        if self._steps == 1:  # which also loads and compiles
            self._started = now
        if self._steps != 1 + _STEPS or device.type != "cpu":
            return None
        wall, used = (after - before for after, before in zip(now, self._started, strict=True))
        if wall < _TOO_LONG * used:
            return None
        return (
            f"slow: {_STEPS} steps took {wall:.1f} s, in which this process computed for {used:.1f} s. Either other "
            "programs use the processor, or the steps wait for images (more --workers)"
        )
