"""Files that survive a crash whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in the place of `path`: no reader and no crash sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """As `write_whole`, for text."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names, over a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
