"""List what is in a tar file, without reading the content of its files."""

from __future__ import annotations

import os
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dino.data.coco.problems import shown

# Of compressed shards: how their names end and how they start, and what unpacks them.
PACKED = {
    "gunzip": ((".tar.gz", ".tgz"), b"\x1f\x8b"),
    "bunzip2": ((".tar.bz2", ".tbz2"), b"BZh"),
    "unxz": ((".tar.xz", ".txz"), b"\xfd7zXZ\0"),
    "unzstd": ((".tar.zst",), b"\x28\xb5\x2f\xfd"),
}
PACKED_SUFFIXES = tuple(suffix for suffixes, _ in PACKED.values() for suffix in suffixes)
_BLOCK = 512  # bytes of a header; contents are padded to such blocks
_METADATA = re.compile(rb"__[^/]*__($|/)")  # WebDataset's own
_OCTAL = re.compile(rb"[0-7]{1,11}[ \0]+")
_NOT_PLAIN = (b"path=", b"size=", b"GNU.", b"charset=")


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


LISTINGS: dict[Path, Listing] = {}  # forked processes share them


def listing(shard: Path) -> Listing:
    """Return what is in a shard. It is read once, without the content of the files, and again if the shard changed.

    Raises:
        OSError: the shard does not exist.
    """
    stamp = stamp_of(os.stat(shard))
    known = LISTINGS.get(shard)
    if known is None or known.stamp != stamp:
        known = LISTINGS[shard] = _list(shard, stamp)
    return known


def _list(shard: Path, stamp: tuple[int, int]) -> Listing:
    found: dict[bytes, tuple[int, int]] = {}
    refused, damage = [], ""
    try:
        with shard.open("rb") as file:
            damage = _read_headers(file, stamp[0], found, refused)
    except OSError as error:
        damage = f"cannot be read: {error.strerror or error}"
    names = sorted(found)
    places = np.array([found[name] for name in names], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
    return Listing(stamp, b"".join(names), ends, places[:, 0].copy(), places[:, 1].copy(), tuple(refused), damage)


def _read_headers(
    file: BinaryIO, size: int, found: dict[bytes, tuple[int, int]], refused: list[tuple[str, str]]
) -> str:
    """Add offset and size of each file, and the entries that are not read; return what is wrong with the shard."""
    start = file.read(8)
    packed = [tool for tool, (_, mark) in PACKED.items() if start.startswith(mark)]
    if packed:
        return unpack_advice(packed[0])
    at = 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            tar.next()  # reading begins again below
            while True:
                plain = _plain_file(file, at) if not tar.pax_headers else None
                if plain is not None:
                    name, offset, length = plain
                    why, end = None, offset + -(-length // _BLOCK) * _BLOCK
                else:
                    file.seek(at)
                    tar.offset = at
                    member = tar.next()
                    vars(tar)["members"].clear()  # it would keep them all
                    if member is None:
                        break
                    name, offset, length, end = os.fsencode(member.name), member.offset_data, member.size, tar.offset
                    why = "" if member.isdir() else _refusal(member)
                name = os.path.normpath(name)
                if name.startswith((b"/", b"../")) or name == b".." or b"\0" in name:
                    why = "its path leads out of the shard"
                if end <= at or (why is None and offset + length > size):
                    raise tarfile.ReadError(f"{shown(os.fsdecode(name))} reaches beyond its end")
                at = end
                if why:
                    refused.append((os.fsdecode(name), why))
                elif why is None and not _METADATA.match(name):
                    found[name] = offset, length  # of several files with one name the last counts, as in tar
        # Zeros mark the end. tarfile also stops at a damaged header.
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK or any(block):
            raise tarfile.ReadError("a header is damaged" if block else "the mark of its end is missing")
    except Exception as error:  # a damaged header can raise nearly anything
        why = str(error) or type(error).__name__
        return f"is cut off or damaged at byte {at:,} of {size:,}: {why}"
    return ""


def _plain_file(file: BinaryIO, at: int) -> tuple[bytes, int, int] | None:
    """Return name, offset and size of a file whose header has nothing unusual, as nearly all; otherwise None.

    tarfile, which reads every header, takes three to four times as long.
    """
    blocks = os.pread(file.fileno(), 3 * _BLOCK, at)
    if blocks[156:157] == b"x":  # more fields of the next header: WebDataset writes times so
        length = _size_of(blocks)
        if length is None or length > _BLOCK or any(key in blocks[_BLOCK : 2 * _BLOCK] for key in _NOT_PLAIN):
            return None
        at, blocks = at + 2 * _BLOCK, blocks[2 * _BLOCK :]
    length = _size_of(blocks)
    name = blocks[:100].partition(b"\0")[0]
    if length is None or blocks[156:157] not in (b"0", b"\0") or blocks[345] or name.endswith(b"/"):
        return None
    return name, at + _BLOCK, length


def _size_of(header: bytes) -> int | None:
    """Return the size in a header if its checksum is right and both are written in the usual way; otherwise None."""
    header = header[:_BLOCK]
    length, checksum = _OCTAL.fullmatch(header, 124, 136), _OCTAL.fullmatch(header, 148, 156)
    if len(header) < _BLOCK or length is None or checksum is None:
        return None
    right = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return int(length[0].rstrip(b" \0"), 8) if int(checksum[0].rstrip(b" \0"), 8) == right else None


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Return why an entry is not read; None of a file."""
    if member.issym() or member.islnk():
        return "it is a link. Write the shard with tar --dereference --hard-dereference"
    if member.issparse():
        return "it is a sparse file. Write the shard without tar --sparse"
    return None if member.isreg() else "it is no regular file"


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def unpack_advice(tool: str) -> str:
    return f"is compressed, so that files in it cannot be read at any position. Unpack it with {tool}"
