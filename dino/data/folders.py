"""List folders and files, and recognise the split that one is named after."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath

SPLITS = ("train", "valid", "test")
_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(name: str) -> str | None:
    """Return the split that a file or folder is named after, or None: "instances_val2017.json" is of "valid"."""
    return next((_WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _WORDS), None)


def split_of_path(path: str) -> str | None:
    """Return the split that an annotation file is named after, or else its folder."""
    file = PurePath(path)
    return split_of(file.stem) or split_of(file.parent.name)


def endings(text: str, split: str | None) -> Iterator[str]:
    """Yield a path, and then its last parts, the longest first. The name of another split is not left out."""
    yield text
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    for k, part in enumerate(parts):
        yield "/".join(parts[k:])
        if split_of(part) not in (None, split):
            return


def folders_in(root: Path) -> Iterator[Path]:
    """Yield the folders directly in a folder, sorted by name; hidden ones are left out."""
    with os.scandir(root) as entries:  # without a query for each file
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    yield from (root / name for name in names)


def folders_of(root: Path) -> list[Path]:
    """Return a folder, the folders in it, and those in these, as most data sets have them; of a file, itself."""
    if not root.is_dir():
        return [root]
    return [root, *(inner for parent in folders_in(root) for inner in (parent, *folders_in(parent)))]


def files_in(root: Path, *suffixes: str) -> list[Path]:
    """Return the files directly in a folder whose names end in one of the suffixes, in any case, sorted by name."""
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if path.name.lower().endswith(suffixes) and not path.name.startswith(".") and path.is_file()
    )
