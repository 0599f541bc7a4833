"""Find files in folders that are listed once, and read the sizes of pictures from their headers."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from PIL import Image

from dino.data.images import upright_size
from dino.data.shards import Shards, open_picture_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def is_picture(name: str | Path) -> bool:
    """Return whether a file name ends like that of a picture, in lower or upper case, and is not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not Path(name).name.startswith(".")


# Nanoseconds within which two changes can have the same time.
_TICK_NS = 2_000_000_000


def settled(changed_ns: int) -> int:
    """Return when something changed, in nanoseconds; 0 if a later change could have the same time."""
    return changed_ns if changed_ns < time.time_ns() - _TICK_NS else 0


class Files:
    """The files below a folder, from one listing of each folder: a query per file is slow on a network file system.

    Args:
        root: the folder; files in tar shards directly in it are found after the others.
        split: the split of the annotations, if it has a name; see `Shards`.
    """

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.root = root
        self._split = split
        self.stamps: dict[str, int] = {}
        """Of each folder and shard that was listed, its `stamp`."""
        self._listings: dict[str, dict[str, str]] = {}

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.root, self._split)

    def listing(self, folder: str) -> dict[str, str]:
        """Return the names of the entries of a folder by their composed form (NFC); empty if there is no folder."""
        if folder not in self._listings:
            self.stamps[folder] = self.stamp(folder)
            try:
                # Some systems store accented letters decomposed, whatever the annotations have.
                names = {unicodedata.normalize("NFC", name): name for name in os.listdir(self.root / folder)}
            except (OSError, ValueError):
                names = {}
            self._listings[folder] = names
        return self._listings[folder]

    def stamp(self, folder: str) -> int:
        """Return when a folder or shard changed, in ns; 0 if there is none, or a later change could have that time."""
        try:
            return settled(os.stat(self.root / folder).st_mtime_ns)
        except (OSError, ValueError):
            return 0

    def find(self, name: str, *, in_shards: bool = True) -> str | None:
        """Return the relative path of an existing file, also if `name` has Windows separators; None without one."""
        for path in dict.fromkeys((name, name.replace("\\", "/"))):
            folder, base = os.path.split(path)
            found = self.listing(folder).get(unicodedata.normalize("NFC", base))
            if found is not None:
                return path if found == base else os.path.join(folder, found)
        found = self.shards.find(name) if in_shards else None
        if found is not None:
            shard = found.partition("/")[0]
            if shard not in self.stamps:
                self.stamps[shard] = self.stamp(shard)
        return found


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of the upright picture, from the file's header; None if it cannot be read."""
    try:
        with Image.open(open_picture_file(path)) as image:
            return upright_size(image)
    except Exception:  # decoders raise nearly anything at a broken file
        return None


def picture_sizes(paths: Iterable[Path]) -> list[tuple[int, int] | None]:
    """Return `picture_size` of each file; several are read at once, since most of the time is waiting for the disk."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(picture_size, paths))
