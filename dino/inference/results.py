"""Files of results that are complete after every image."""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any


class JsonList:
    """A JSON file of a list that is valid after every `extend`, whatever ends the process in between.

    A file of that name is replaced at the first `extend`, or at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._end = 0  # of the last entry

    def extend(self, entries: Iterable[Any]) -> None:
        """Write entries at the end of the list.

        Raises:
            OSError: they cannot be written, for example because the disk is full. The file holds the entries before.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "w")
            self._write(b"[")
            self._end = 1
        texts = [json.dumps(entry) for entry in entries]
        comma = b"" if self._end == 1 else b","
        content = comma + b"\n" + ",\n".join(texts).encode() if texts else b""
        try:
            self._write(content + b"\n]\n")
        except OSError as error:
            self._write(b"\n]\n")
            self._file.truncate()
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(content)

    def close(self) -> None:
        """Close the file, which is an empty list if nothing was written."""
        if self._file is None:
            self.extend([])
        assert self._file is not None
        self._file.close()

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.seek(self._end)
        while content:
            content = content[self._file.write(content) or 0 :]
