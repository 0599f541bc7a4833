"""Read files in tar shards (WebDataset's layout) at any position. The path of one is "shard-000000.tar/0001.jpg"."""

from __future__ import annotations

import io
import os
import re
import tarfile
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dino.common.text import shorten
from dino.data.coco.problems import shown
from dino.data.folders import files_in, split_of

SUFFIX = ".tar"
# Of compressed shards: how their names end and how they start, and what unpacks them.
_PACKED = {
    "gunzip": ((".tar.gz", ".tgz"), b"\x1f\x8b"),
    "bunzip2": ((".tar.bz2", ".tbz2"), b"BZh"),
    "unxz": ((".tar.xz", ".txz"), b"\xfd7zXZ\0"),
    "unzstd": ((".tar.zst",), b"\x28\xb5\x2f\xfd"),
}
PACKED_SUFFIXES = tuple(suffix for suffixes, _ in _PACKED.values() for suffix in suffixes)
_MOST_OPEN = 64
_BUFFER = 1 << 16  # bytes; what Pillow reads at once
_BLOCK = 512  # bytes of a tar header
_METADATA = re.compile(r"__[^/]*__($|/)")  # WebDataset's own


@dataclass(frozen=True, eq=False)
class Listing:
    """The regular files in a shard in the order of their names, as columns: a shard can have millions."""

    stamp: tuple[int, int]
    """Size of the shard in bytes, and when it was changed in nanoseconds."""
    text: bytes
    """The names, one after another."""
    ends: np.ndarray  # [N + 1] int64: name i is text[ends[i] : ends[i + 1]]
    offsets: np.ndarray  # [N] int64: where the content starts in the shard
    sizes: np.ndarray  # [N] int64, bytes
    refused: tuple[tuple[str, str], ...]
    """Other entries that are no folders: the name, and why it is not read."""
    damage: str
    """What is wrong with the shard as a whole; "" if nothing."""

    def __len__(self) -> int:
        return len(self.sizes)

    def names(self) -> Iterator[str]:
        """Yield the names in their order."""
        return (os.fsdecode(self._name(i)) for i in range(len(self)))

    def find(self, name: str) -> tuple[int, int] | None:
        """Return (offset, size) of a file, or None."""
        wanted = os.fsencode(name)
        at = bisect_left(range(len(self)), wanted, key=self._name)
        if at == len(self) or self._name(at) != wanted:
            return None
        return int(self.offsets[at]), int(self.sizes[at])

    def _name(self, i: int) -> bytes:
        return self.text[self.ends[i] : self.ends[i + 1]]


_listings: dict[Path, Listing] = {}  # forked processes share them


def listing(shard: Path) -> Listing:
    """Return what is in a shard. It is read once, without the content of the files, and again if the shard changed.

    Raises:
        OSError: the shard does not exist.
    """
    stamp = _stamp(os.stat(shard))
    known = _listings.get(shard)
    if known is None or known.stamp != stamp:
        known = _listings[shard] = _list(shard, stamp)
    return known


def _list(shard: Path, stamp: tuple[int, int]) -> Listing:
    found: dict[bytes, tuple[int, int]] = {}
    refused, damage = [], ""
    try:
        with shard.open("rb") as file:
            damage = _list_open(file, stamp[0], found, refused)
    except OSError as error:
        damage = f"cannot be read: {error.strerror or error}"
    names = sorted(found)
    places = np.array([found[name] for name in names], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
    return Listing(stamp, b"".join(names), ends, places[:, 0].copy(), places[:, 1].copy(), tuple(refused), damage)


def _list_open(file: BinaryIO, size: int, found: dict[bytes, tuple[int, int]], refused: list[tuple[str, str]]) -> str:
    """Add offset and size of each file, and the entries that are not read; return what is wrong with the shard."""
    start, end = file.read(8), 0
    packed = [tool for tool, (_, mark) in _PACKED.items() if start.startswith(mark)]
    if packed:
        return _unpack(packed[0])
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # it would keep them all
                name, why = os.path.normpath(member.name), _refusal(member)
                if tar.offset <= end or (why is None and member.offset_data + member.size > size):
                    raise tarfile.ReadError(f"{shown(name)} reaches beyond its end")
                end = tar.offset
                if why is not None:
                    refused.append((name, why))
                elif member.isreg() and not _METADATA.match(name):
                    # Of several files with one name the last counts, as in tar.
                    found[os.fsencode(name)] = member.offset_data, member.size
        # Zeros mark the end. tarfile also stops at a damaged header.
        file.seek(end)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK or any(block):
            raise tarfile.ReadError("a header is damaged" if block else "the mark of its end is missing")
    except Exception as error:  # a damaged header can raise nearly anything
        why = str(error) or type(error).__name__
        return f"is cut off or damaged at byte {end:,} of {size:,}: {why}"
    return ""


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Return why an entry is not read; None of files and folders."""
    name = os.path.normpath(member.name)
    if name.startswith(("/", "../")) or name == ".." or "\0" in name:
        return "its path leads out of the shard"
    if member.issym() or member.islnk():
        return "it is a link. Write the shard with tar --dereference --hard-dereference"
    if member.issparse():
        return "it is a sparse file. Write the shard without tar --sparse"
    return None if member.isreg() or member.isdir() else "it is no regular file"


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _unpack(tool: str) -> str:
    return f"is compressed, so that files in it cannot be read at any position. Unpack it with {tool}"


def packed_shard(root: Path) -> str | None:
    """Return a line about a compressed shard, if `root` or a file in this folder is one; otherwise None."""
    for tool, (suffixes, _) in _PACKED.items():
        files = [root] if root.name.lower().endswith(suffixes) else files_in(root, *suffixes)
        if files and files[0].is_file():
            return f"{files[0].name} {_unpack(tool)}"
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
    known = _listings.get(shard) or listing(shard)
    place = known.find(name)
    if place is None:
        raise FileNotFoundError(f"{shard}: has no file {name}.")
    opened = _opened(shard, known.stamp)
    if _stamp(os.fstat(opened.fileno())) != known.stamp:
        raise OSError(f"{shard.name} was changed while it was in use. Start again with the new shard")
    return io.BufferedReader(_Member(opened, *place), _BUFFER)


def shard_of(path: Path) -> Path | None:
    """Return the shard that a path leads into; None of other paths, also if a folder is called like a shard."""
    if f"{SUFFIX}/" not in path.as_posix().lower():
        return None
    shards = (folder for folder in path.parents if folder.name.lower().endswith(SUFFIX))
    return next((shard for shard in shards if shard in _listings or os.path.isfile(shard)), None)


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
