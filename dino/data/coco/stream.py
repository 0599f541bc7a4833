"""Read a COCO file from its beginning to its end, with a small part of it in memory."""

from __future__ import annotations

import codecs
import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dino.data.coco.problems import DatasetError, shown

COLLECTIONS: tuple[str, ...] = ("images", "annotations", "categories")
Blocks = Iterator[list[Any]]
"""The entries of a collection, in lists of some thousands."""

_BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*")
_LONGEST_SEPARATOR = 64
_MOST_CUTS = 8
# At an error this close to the end of the text so far, more text may be what is missing.
_LONGEST_TOKEN = 16


def read_collections(
    path: Path,
    name: str,
    *,
    needed: Sequence[str] = COLLECTIONS,
    on_bytes: Callable[[bytes], object] | None = None,
) -> Iterator[tuple[str, Blocks]]:
    """Yield each collection of a COCO file with its entries, in the order of the file.

    A collection that is in the file twice comes twice; the last one counts, as in Python's `json`. The other content is
    checked for being JSON, and left out.

    Args:
        path: the file.
        name: the file as messages name it.
        needed: the collections that the file must have.
        on_bytes: is called with each block of the file that was read.

    Raises:
        DatasetError: the file cannot be read, or is not a COCO file.
    """
    try:
        with path.open("rb") as file, _garbage_collection_paused():
            yield from _collections(_Text(file, name, on_bytes), name, needed)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise DatasetError(f"{name}: is nested too deeply to be a COCO file.") from error


def _collections(text: _Text, name: str, needed: Sequence[str]) -> Iterator[tuple[str, Blocks]]:
    if text.next() != "{":
        beginning = _beginning_of_list(text) if text.next() == "[" else text.value()
        raise DatasetError(f"{name}: must be a JSON object with {list(COLLECTIONS)}, got {shown(beginning)}.")
    keys = {}
    for key in _members(text):
        keys[key] = None
        if text.next() != "[":
            value = text.value()
            if key in needed:
                raise DatasetError(f"{name}: {key!r} must be a list, got {shown(value)}.")
            continue
        blocks = _blocks(text)
        if key in COLLECTIONS:
            yield key, blocks
        for _ in blocks:
            pass  # what nobody wanted
    if text.next():
        raise text.error("Extra data")
    missing = [key for key in needed if key not in keys]
    if missing:
        raise DatasetError(f"{name}: has no {missing}; a COCO file has {list(COLLECTIONS)}, got {list(keys)}.")


def _members(text: _Text) -> Iterator[str]:
    """Yield the keys of an object, each with the text at its value."""
    text.skip()
    if text.next() == "}":
        text.skip()
        return
    while True:
        if text.next() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = text.value()
        if text.next() != ":":
            raise text.error("Expecting ':' delimiter")
        text.skip()
        yield key
        if not text.another("}"):
            return


def _blocks(text: _Text) -> Blocks:
    """Yield the entries of a list, as many at a time as are in memory."""
    text.skip()
    if text.next() == "]":
        text.skip()
        return
    block: list[Any] = []
    begun = text.bytes_read
    more = True
    while more:
        block += text.objects()
        block.append(text.value())
        more = text.another("]")
        if not more or text.bytes_read != begun:
            yield block
            block, begun = [], text.bytes_read


def _beginning_of_list(text: _Text) -> list[Any]:
    found: list[Any] = []
    for block in _blocks(text):
        found += block[:100]
        if shown(found).endswith("..."):
            break
    return found


class _Text:
    """The text of a file from a position on, of which a part is in memory."""

    def __init__(self, file: BinaryIO, name: str, on_bytes: Callable[[bytes], object] | None) -> None:
        self._file = file
        self._name = name
        self._on_bytes = on_bytes
        self._decode_list = json.JSONDecoder().decode
        self._scan = json.JSONDecoder().scan_once  # pyright: ignore[reportAttributeAccessIssue]
        self.bytes_read = 0
        self._tried = -1
        self._ended = False
        self._window = ""
        self._at = 0
        self._lines = 0  # before the window
        self._columns = 0
        beginning = file.read(4)
        encoding = json.detect_encoding(beginning)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._decode(beginning)

    def next(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._window, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._read_more():
                return ""

    def skip(self) -> None:
        """Move behind the character at the position."""
        self._at += 1

    def another(self, end: str) -> bool:
        """Move behind the comma or the `end` that must be next; return whether it was a comma."""
        found = self.next()
        if found != "," and found != end:
            raise self.error("Expecting ',' delimiter")
        self.skip()
        if found == end:
            return False
        if self.next() == end:
            raise self.error("Illegal trailing comma before end of " + ("array" if end == "]" else "object"))
        return True

    def objects(self) -> list[Any]:
        """Return the objects in memory that have another behind them, and move to that: faster than one by one.

        Nothing is returned where that fails, or was tried before with the same text in memory.
        """
        self.next()
        if self._tried == self.bytes_read:
            return []
        self._tried = self.bytes_read
        cut = len(self._window)
        for _ in range(_MOST_CUTS):
            cut = self._window.rfind("{", self._at, cut)
            if cut < 0:
                break
            before = self._window[max(self._at, cut - _LONGEST_SEPARATOR) : cut]
            if not _SEPARATOR.fullmatch(before[before.rfind("}") :]):
                continue
            try:
                # Only at an end of an entry does this have as many brackets that open as that close.
                found = self._decode_list(f"[{self._window[self._at : cut].rstrip()[:-1]}]")
            except (json.JSONDecodeError, RecursionError):
                break
            self._at = cut
            return found
        return []

    def value(self) -> Any:
        """Return the value that follows, and move behind it."""
        self.next()
        while True:
            problem, position = "Expecting value", self._at
            try:
                value, end = self._scan(self._window, self._at)
            except StopIteration as error:
                position = error.value
            except json.JSONDecodeError as error:
                problem, position = error.msg.removesuffix(" at"), error.pos
            else:
                # A number, as in "-0.", may go on in what is not read yet.
                whole = end < len(self._window) - (_LONGEST_TOKEN if isinstance(value, int | float) else 0)
                if whole or not self._read_more():
                    self._at = end
                    return value
                continue
            unfinished = problem.startswith("Unterminated") or position > len(self._window) - _LONGEST_TOKEN
            if not unfinished or not self._read_more():
                raise self.error(problem, position)

    def error(self, problem: str, position: int | None = None) -> DatasetError:
        """Return the error that the file is not JSON at a position of the part in memory; by default where it is."""
        before = self._window[: self._at if position is None else position]
        line = self._lines + before.count("\n") + 1
        column = len(before) - before.rfind("\n") + (self._columns if "\n" not in before else 0)
        return DatasetError(
            f"{self._name}: is not valid JSON: {problem} at line {line}, column {column}. Is it complete?"
        )

    def _read_more(self) -> bool:
        """Forget the text before the position, and read on; return False at the end of the file."""
        if self._ended:
            return False
        past = self._window[: self._at]
        self._lines += past.count("\n")
        self._columns = len(past) - past.rfind("\n") - 1 + (self._columns if "\n" not in past else 0)
        self._window = self._window[self._at :]
        self._at = 0
        # Twice as much each time that one value does not fit.
        self._decode(self._file.read(max(_BLOCK_BYTES, len(self._window))))
        return True

    def _decode(self, content: bytes) -> None:
        self._ended = not content
        if self._on_bytes is not None:
            self._on_bytes(content)
        kept = len(self._decoder.getstate()[0])  # the beginning of a letter
        try:
            self._window += self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            where = self.bytes_read - kept + error.start
            raise DatasetError(f"{self._name}: is not text in UTF-8: byte {where} cannot be read.") from error
        self.bytes_read += len(content)


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    # Parsing makes millions of objects, none of them garbage; collecting would take longer than parsing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
