"""Turn Ctrl-C, SIGTERM and a closed terminal into requests to stop after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Records SIGINT (Ctrl-C), SIGTERM and SIGHUP for the length of its block; a second Ctrl-C interrupts at once.

    A signal that the process ignores, as under nohup, stays ignored. Outside the main thread, where Python delivers no
    signals, nothing is recorded.

    Args:
        answer: written to stderr when the first signal arrives.
    """

    def __init__(self, answer: str = "") -> None:
        self.signal: str | None = None
        """Name of the signal received, or None."""
        self._answer = answer
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None and self._answer:
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, f"\n{self._answer}\n".encode())  # not print: the signal may have interrupted one
        self.signal = self.signal or signal.Signals(number).name
