"""Show progress: a bar on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0
_COUNT = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}"


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


def progress_bar(
    items: Iterable[Item],
    name: str,
    unit: str = "",
    total: int | None = None,
    *,
    initial: int = 0,
    stream: TextIO | None = None,
    leave: bool = True,
    disable: bool = False,
) -> tqdm[Item]:
    """Return `items` with a progress bar; if they are empty, a bar to be updated.

    Args:
        name: text before the bar.
        unit: unit of the rate; "" shows no rate.
        total: number of items, if `items` has no length.
        initial: items done before; they do not count for the time left.
        stream: where to write; the default is stderr.
        leave: keep the bar when it is complete.
        disable: show nothing.
    """
    file = sys.stderr if stream is None else stream
    live = file.isatty()
    tail = _COUNT + (", {rate_noinv_fmt}" if unit else "") + "{postfix}]"
    return tqdm(
        items,
        desc=name,
        total=total,
        initial=initial,
        unit=f" {unit}",
        file=file if live else _Lines(file),  # pyright: ignore[reportArgumentType]
        bar_format=("{desc}: {percentage:3.0f}%|{bar}| " if live else "{desc}: {percentage:.0f}% ") + tail,
        leave=leave,
        position=None if live else 0,  # no cursor movements in a file
        dynamic_ncols=live,
        mininterval=0.1 if live else SECONDS_BETWEEN_LINES,
        miniters=1,
        smoothing=0,  # the mean speed includes evaluations, and so does the time left
        delay=0 if live else 1e-9,  # the first line after an interval, not at the start
        disable=disable,
    )
