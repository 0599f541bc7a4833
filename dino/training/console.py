"""Write log lines and progress bars that do not disturb one another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO, TypeVar

from tqdm import tqdm

from dino.common.progress import progress_bar

Item = TypeVar("Item")


class Console:
    """Writes the lines and bars of a run.

    Args:
        stream: where to write; None: nowhere, as on all processes but the first.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def is_terminal(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def log(self, text: str) -> None:
        """Write lines, above the bars on a terminal."""
        if self._stream is not None:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def bar(
        self,
        items: Iterable[Item],
        name: str,
        unit: str = "",
        *,
        total: int,
        initial: int = 0,
        leave: bool = True,
    ) -> tqdm[Item]:
        """Return a progress bar, as `progress_bar` does."""
        return progress_bar(
            items, name, unit, total, initial=initial, stream=self._stream, leave=leave, disable=self._stream is None
        )
