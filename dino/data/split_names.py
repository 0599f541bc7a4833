"""The names of splits in the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

SPLITS = ("train", "valid", "test")
_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(name: str) -> str | None:
    """Return the split that a file or folder is named after, or None: "instances_val2017.json" is of "valid"."""
    return next((_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _WORDS), None)


def endings(text: str, split: str | None) -> Iterator[str]:
    """Yield a path, and then its last parts, the longest first. The name of another split is not left out."""
    yield text
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    for k, part in enumerate(parts):
        yield "/".join(parts[k:])
        if split_of(part) not in (None, split):
            return
