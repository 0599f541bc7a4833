"""Write log lines and progress bars that do not disturb one another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, TextIO, TypeVar, cast

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class Console:
    """Writes lines and progress bars; outside a terminal a bar is a line at intervals.

    Where nothing can be written any more, because a pipe is closed or a disk is full, the rest is lost and the work
    goes on.

    Args:
        stream: where to write; None: nowhere, as on all processes but the first.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = None if stream is None else cast(TextIO, _Lasting(stream))

    @property
    def silent(self) -> bool:
        """Whether nothing is written."""
        return self._stream is None

    def log(self, text: str) -> None:
        """Write lines, above the bars of a terminal."""
        if self._stream is not None:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def bar(
        self,
        items: Iterable[Item],
        name: str,
        unit: str = "",
        total: int | None = None,
        *,
        initial: int = 0,
        leave: bool = True,
    ) -> tqdm[Item]:
        """Return `items` with a progress bar; if they are empty, a bar to be updated.

        Args:
            name: text before the bar.
            unit: unit of the rate; "" shows no rate.
            total: number of items, if `items` has no length; None if it is unknown.
            initial: items done before; they do not count for the time left.
            leave: keep the bar when it is complete.
        """
        live = self._stream is not None and self._stream.isatty()
        rate = ", {rate_noinv_fmt}" if unit else ""
        bounded = total is not None or hasattr(items, "__len__")
        progress = f"{{percentage:3.0f}}%{'|{bar}|' if live else ''} {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}"
        return tqdm(
            items,
            desc=name,
            total=total,
            initial=initial,
            unit=f" {unit}",
            file=self._stream if live or self._stream is None else _Lines(self._stream),  # pyright: ignore
            bar_format=f"{{desc}}: {progress if bounded else '{n_fmt} [{elapsed}'}{rate}{{postfix}}]",
            leave=leave,
            position=None if live else 0,  # no cursor movements in a file
            dynamic_ncols=live,
            mininterval=0.1 if live else SECONDS_BETWEEN_LINES,
            miniters=1,
            smoothing=0,  # the mean speed includes evaluations, and so does the time left
            delay=0 if live else 1e-9,  # the first line after an interval, not at the start
            disable=self._stream is None,
        )


class _Lasting:
    """A stream that writes to nowhere after the first failure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._attempt(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            with contextlib.suppress(OSError):  # Python flushes the rest at the end, and would fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._attempt = lambda action: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines:
    """Writes each state of a bar on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        for line in text.replace("\r", "\n").split("\n"):
            if line.strip():
                self._stream.write(f"{line.rstrip()}\n")

    def flush(self) -> None:
        self._stream.flush()
