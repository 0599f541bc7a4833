"""Stopping on request: the step is finished and a checkpoint written first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes SIGINT (Ctrl-C) and SIGTERM while its block runs; a second Ctrl-C interrupts at once.

    Outside of the main thread, where Python delivers no signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal that came, or None."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
