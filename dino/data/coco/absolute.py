"""Find pictures that are named by absolute paths, of this machine or of another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath

from dino.data.coco.files import Files
from dino.data.folders import endings


def is_absolute(name: str) -> bool:
    """Return whether a path is absolute on some system."""
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()


def find_pictures(files: Files, names: Sequence[str], split: str | None, *, in_shards: bool = True) -> list[str | None]:
    """Return the path of each picture, absolute if it is outside the folder; None for one that is missing.

    An absolute path that does not exist is of another machine: then its last parts count, the longest that exist. A
    picture that several such paths would be is none of them.

    Args:
        files: the folder of the pictures.
        names: paths from the annotations.
        split: the split of the annotations: the name of another one is not left out of a path.
        in_shards: also look into tar shards.
    """
    find = partial(files.find, in_shards=in_shards)
    root = os.path.join(os.path.abspath(files.root), "")
    # Relative to the folder where that is possible: the same on every machine.
    found = [None if path is None else path.removeprefix(root) for path in map(find, names)]
    lost = [k for k, name in enumerate(names) if found[k] is None and is_absolute(name)]
    if not lost:
        return found
    direct = {path for path in found if path is not None}
    guesses = {k: next((p for p in map(find, endings(names[k], split)) if p is not None), None) for k in lost}
    claims = Counter({path: len({names[k] for k in lost if guesses[k] == path}) for path in set(guesses.values())})
    for k, path in guesses.items():
        if path is not None and path not in direct and claims[path] == 1:
            found[k] = path
    return found
