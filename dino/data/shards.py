"""Read files in tar shards (WebDataset's layout) at any position. The path of one is "shard-000000.tar/0001.jpg"."""

from __future__ import annotations

import io
import os
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

from dino.common.text import shorten
from dino.data.folders import files_in, split_of
from dino.data.tar_listing import LISTINGS, PACKED, Listing, listing, stamp_of, unpack_advice

SUFFIX = ".tar"
_MOST_OPEN = 64
_BUFFER = 1 << 16  # bytes; what Pillow reads at once


def packed_shard(root: Path) -> str | None:
    """Return a line about a compressed shard, if `root` or a file in this folder is one; otherwise None."""
    for tool, (suffixes, _) in PACKED.items():
        files = [root] if root.name.lower().endswith(suffixes) else files_in(root, *suffixes)
        if files and files[0].is_file():
            return f"{files[0].name} {unpack_advice(tool)}"
    return None


class Shards:
    """The files in the tar shards of a folder, by their names.

    Args:
        root: the folder.
        split: leave out shards that are named after another split, unless a name starts with that of the shard.
    """

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.root = root
        self._listings: dict[Path, Listing] = {}  # so that each shard is queried once
        self._shards = {shard.name: shard for shard in files_in(root, SUFFIX)}
        self._own = [s for s in self._shards.values() if split is None or split_of(s.stem) in (None, split)]

    def find(self, name: str) -> str | None:
        """Return the path of a file relative to the folder, such as "shard-000000.tar/0001.jpg".

        Args:
            name: the name in the shard, with or without its folder there; or that path.

        Returns:
            None if there is no such file, or more than one.
        """
        if not self._shards:
            return None
        shard, _, inside = name.partition("/")
        if shard in self._shards and self._listing(self._shards[shard]).find(inside) is not None:
            return name
        found = self._candidates(name)
        return found[0] if len(found) == 1 else None

    def hint(self, name: str) -> str:
        """Return why a file is not found, to follow "missing from the folder"; "" if that says it all."""
        if len(found := self._candidates(name)) > 1:
            return f", but in several shards. Name one of: {shorten(found, 3)}"
        known = {shard.name: self._listing(shard) for shard in self._own}
        for shard, one in known.items():
            for refused, why in one.refused:
                if refused in (name, name.removeprefix(f"{shard}/")):
                    return f": in {shard}, {why}"
        damaged = [f"{shard} {one.damage}" for shard, one in known.items() if one.damage]
        line = damaged[0] if damaged else packed_shard(self.root)
        return f"; {line}" if line is not None else ""

    def _candidates(self, name: str) -> list[str]:
        wanted = _composed(name)
        ends = [
            path
            for path in self._paths.get(wanted.rpartition("/")[2], ())
            if f"/{_composed(path)}".endswith(f"/{wanted}")
        ]
        whole = [path for path in ends if _composed(path).partition("/")[2] == wanted]
        return whole or ends

    def _listing(self, shard: Path) -> Listing:
        if shard not in self._listings:
            self._listings[shard] = listing(shard)
        return self._listings[shard]

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """The paths of all files by their last part."""
        paths: dict[str, list[str]] = {}
        for shard in self._own:
            for name in self._listing(shard).names():
                paths.setdefault(_composed(name).rpartition("/")[2], []).append(f"{shard.name}/{name}")
        return paths


def _composed(name: str) -> str:
    # Some systems store accented letters decomposed, whatever the annotations have.
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def open_picture_file(path: str | Path) -> Path | BinaryIO:
    """Return a path as it is, or, if it leads into a shard, that file opened for reading; see `open_in_shard`."""
    path = Path(path)
    shard = shard_of(path)
    return path if shard is None else open_in_shard(shard, path.relative_to(shard).as_posix())


def open_in_shard(shard: Path, name: str) -> BinaryIO:
    """Open a file in a shard for reading.

    Raises:
        FileNotFoundError: the shard has no such file.
        OSError: the shard cannot be read, or was changed since it was listed.
    """
    known = LISTINGS.get(shard) or listing(shard)
    place = known.find(name)
    if place is None:
        raise FileNotFoundError(f"{shard}: has no file {name}.")
    opened = _opened(shard, known.stamp)
    if stamp_of(os.fstat(opened.fileno())) != known.stamp:
        raise OSError(f"{shard.name} was changed while it was in use. Start again with the new shard")
    return io.BufferedReader(_Member(opened, *place), _BUFFER)


def shard_of(path: Path) -> Path | None:
    """Return the shard that a path leads into; None of other paths, also if a folder is called like a shard."""
    if f"{SUFFIX}/" not in path.as_posix().lower():
        return None
    shards = (folder for folder in path.parents if folder.name.lower().endswith(SUFFIX))
    return next((shard for shard in shards if shard in LISTINGS or os.path.isfile(shard)), None)


class _OpenShard(io.FileIO):
    # When it is out of the cache and no thread reads from it.
    __del__ = io.FileIO.close


@lru_cache(_MOST_OPEN)
def _opened(shard: Path, _stamp: tuple[int, int]) -> _OpenShard:
    return _OpenShard(shard)


class _Member(io.RawIOBase):
    """A part of a shard as a file.

    Reads state their position in the shard, so that threads and forked processes can share what is open.
    """

    def __init__(self, shard: _OpenShard, offset: int, size: int) -> None:
        self._shard, self._offset, self._size = shard, offset, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        left = max(0, self._size - self._position)
        data = os.pread(self._shard.fileno(), min(len(buffer), left), self._offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
