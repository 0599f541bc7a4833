"""Keep what was read from a large COCO file beside it: it is read once, and all processes share the result.

The index of `train.json` is the folder `.dino-index/train.json`: NumPy files that are mapped into memory, and
`index.json`, which says what they were read from.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dino.common.console import Console
from dino.common.text import counted
from dino.data.coco.columns import Columns
from dino.data.coco.document import Document
from dino.data.coco.files import Files, settled
from dino.data.coco.problems import Problems
from dino.data.coco.reader import CocoReader, Content
from dino.data.coco.stream import read_collections
from dino.data.shards import SUFFIX

LARGE = 32 << 20
"""Bytes of a file from which on it is worth an index: about two seconds of reading."""

_FOLDER = ".dino-index"
_VERSION = 1
_BLOCK = 1 << 20


class StaleError(Exception):
    """An index that is not of the file as it is now; its text says why."""


def read_content(file: Path, document: Document) -> Content:
    """Read a COCO file, or open its index if there is one; of a large file an index is made.

    Args:
        file: the COCO file.
        document: names and folder; the entries are not looked at.

    Raises:
        DatasetError: the file cannot be used.
    """
    try:
        size = file.stat().st_size
    except OSError:
        size = 0  # the reader says what is wrong
    if size >= LARGE:
        console = Console(sys.stderr)
        for folder in _places(file):
            try:
                return _read_or_open(folder, file, document, console)
            except OSError as error:  # read-only, or full
                console.log(f"{document.name}: no index in {folder.parent}: {error.strerror or error}")
    return _read(file, document).content()


def _places(file: Path) -> Iterator[Path]:
    """Yield where the index of a file may be: beside it, or where programs keep such files if that is read-only."""
    yield file.parent / _FOLDER / file.name
    with contextlib.suppress(RuntimeError):  # there is no home folder
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()
        yield caches / "dino" / f"{path[:16]}-{file.name}"


def _read_or_open(folder: Path, file: Path, document: Document, console: Console) -> Content:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder, document.name, console, exclusive=False), contextlib.suppress(StaleError):
        return _open(folder, file, document)
    with _locked(folder, document.name, console, exclusive=True):
        try:
            return _open(folder, file, document)  # another process may have made it
        except StaleError as error:
            if folder.exists():
                console.log(f"{document.name}: {error}; it is read again")
        for left in folder.parent.glob(f"{glob.escape(folder.name)}.*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        temporary.mkdir()
        try:
            content = _write(temporary, file, document, console)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    content = content._replace(columns=Columns.open(folder))
    boxes, images = counted(len(content.columns.areas), "box"), counted(len(content.columns), "image")
    console.log(f"{document.name}: {boxes} in {images}, indexed in {folder}: the next start does not read it again")
    return content


def _write(folder: Path, file: Path, document: Document, console: Console) -> Content:
    """Read a COCO file into a folder, and return what was read."""
    stamp, digest, bytes_read = _stamp(file), hashlib.sha256(), 0
    with console.bar((), f"reading {document.name}", "MB", total=stamp[0] // 10**6, leave=False) as bar:

        def on_bytes(block: bytes) -> None:
            nonlocal bytes_read
            bytes_read += len(block)
            digest.update(block)
            bar.update(bytes_read // 10**6 - bar.n)

        reader = _read(file, document, folder, on_bytes)
        content = reader.content()
    columns = sorted(path.name for path in folder.glob("*.npy"))
    meta = {
        "version": _VERSION,
        "file": {"stamp": stamp, "sha256": digest.hexdigest()},
        "images_dir": os.path.relpath(document.images_dir, file.parent),
        "called": [document.name, str(document.images_dir)],
        "folders": reader.files.stamps,
        "unsized": reader.unsized,
        "unsized_stamps": _stamps(document.images_dir, reader.unsized),
        "categories": content.categories,
        "problems": content.problems.to_json(),
        "totals": content.totals,
        "columns": {name: _checksum(folder / name) for name in columns},
    }
    _write_meta(folder, meta)
    return content


def _read(
    file: Path, document: Document, folder: Path | None = None, on_bytes: Callable[[bytes], object] | None = None
) -> CocoReader:
    reader = CocoReader(document, folder)
    for collection, blocks in read_collections(file, document.name, on_bytes=on_bytes):
        reader.read(collection, blocks)
    if not reader.complete:
        for collection, blocks in read_collections(file, document.name):
            if collection == "annotations":
                reader.read(collection, blocks)
    return reader


def _open(folder: Path, file: Path, document: Document) -> Content:
    """Open an index.

    Raises:
        StaleError: there is none, or it is damaged, or of another state of the file or the images.
    """
    meta = _read_meta(folder)
    problems = Problems.from_json(meta["problems"])
    changed = _check_source(meta, file)
    if meta["images_dir"] != os.path.relpath(document.images_dir, file.parent):
        raise StaleError("its index was made with another folder of images")
    if problems and meta["called"] != [document.name, str(document.images_dir)]:
        raise StaleError("its index was made with other names for messages")
    for name, checksum in meta["columns"].items():
        if _checksum(folder / name) != checksum:
            raise StaleError(f"its index is damaged ({folder / name})")
    columns = Columns.open(folder)
    changed |= _check_images(meta, document.images_dir, columns, problems)
    if changed:
        with contextlib.suppress(OSError):  # read-only
            _write_meta(folder, meta)
    return Content(meta["categories"], columns, problems, meta["totals"])


def _check_source(meta: dict[str, Any], file: Path) -> bool:
    """Check that a file is the one that was read; return whether its time of change was put right in `meta`."""
    stamp, known = _stamp(file), meta["file"]
    if stamp == known["stamp"] and stamp[1]:
        return False
    if stamp[0] != known["stamp"][0] or _digest(file) != known["sha256"]:
        raise StaleError("has changed since its index was made")
    known["stamp"] = stamp
    return True


def _check_images(meta: dict[str, Any], images_dir: Path, columns: Columns, problems: Problems) -> bool:
    """Check that the images are there, by the time of change of their folders; return whether `meta` was put right."""
    if meta["unsized_stamps"] != _stamps(images_dir, meta["unsized"]):
        raise StaleError("images without a size in it have changed since its index was made")
    files = Files(images_dir)
    changed = {folder for folder, stamp in meta["folders"].items() if files.stamp(folder) != stamp or not stamp}
    if not changed:
        return False
    if any(problem.kind == "missing file" for problem in problems):
        raise StaleError("the folder of its images has changed since its index was made")
    if meta["unsized"] and any(name.endswith(SUFFIX) for name in changed):
        raise StaleError("a shard has changed since its index was made")
    for name in columns.file_names:
        if files.find(name) != name:
            raise StaleError(f"{name} is missing since its index was made")
    meta["folders"] |= {folder: files.stamps[folder] for folder in changed if folder in files.stamps}
    return True


def _stamp(file: Path) -> list[int]:
    """Return size and times of change; the times are 0 if a later change could have the same."""
    state = file.stat()
    times = [state.st_mtime_ns, state.st_ctime_ns]
    return [state.st_size, *(times if settled(max(times)) else [0, 0])]


def _stamps(folder: Path, names: list[str]) -> str:
    """Return a digest of size and time of change of files."""
    digest = hashlib.sha256()
    for name in names:
        with contextlib.suppress(OSError):
            state = os.stat(folder / name)
            digest.update(f"{name}/{state.st_size}/{state.st_mtime_ns}/".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(file):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block


def _checksum(file: Path) -> list[int]:
    """Return the size of a file, and a checksum that takes as long as reading it.

    Raises:
        StaleError: the file cannot be read.
    """
    size = check = 0
    try:
        for block in _blocks(file):
            words = np.frombuffer(block, np.uint64, len(block) // 8)
            sums = words.sum(dtype=np.uint64), np.bitwise_xor.reduce(words)
            check = zlib.crc32(b"".join(value.tobytes() for value in sums) + block[words.nbytes :], check)
            size += len(block)
    except OSError as error:
        raise StaleError(f"its index is incomplete ({file}: {error.strerror})") from error
    return [size, check]


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    # Not flushed to the disk, as the columns are not: what a crash damages is noticed by the checksums.
    text = json.dumps(meta)
    temporary = folder / f"index.json.{os.getpid()}"
    temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")
    temporary.replace(folder / "index.json")


def _read_meta(folder: Path) -> dict[str, Any]:
    """Raises StaleError: it cannot be used."""
    try:
        digest, _, text = (folder / "index.json").read_text(encoding="utf-8").rstrip("\n").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StaleError("its index is incomplete") from error
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise StaleError("its index is damaged")
    meta = json.loads(text)
    if meta["version"] != _VERSION:
        raise StaleError("its index is of another version of this package")
    return meta


@contextlib.contextmanager
def _locked(folder: Path, name: str, console: Console, *, exclusive: bool) -> Iterator[None]:
    """Hold the lock of an index, which ends with this process, however that ends; without locks do nothing."""
    try:
        import fcntl

        opened = folder.with_name(f"{folder.name}.lock").open("a")
    except (ImportError, OSError):
        yield
        return
    with opened:
        waiting = False
        while True:
            try:
                fcntl.flock(opened, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    console.log(f"{name}: another process reads it; waiting")
                waiting = True
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield
