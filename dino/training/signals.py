"""Turn SIGINT and SIGTERM into requests to stop after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Records SIGINT (Ctrl-C) and SIGTERM for the length of its block; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python delivers no signals, nothing is recorded.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal received, or None."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
