"""The entries of one split in COCO's form, read from a file of any format."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.data.coco.problems import DatasetError, Problem, shown

COLLECTIONS = ("images", "annotations", "categories")


@dataclass
class Document:
    """Entries as in a COCO file. They are not checked yet."""

    name: str
    """The annotations as messages name them: a path relative to the folder of the data."""
    images_dir: Path
    """The folder that file names are relative to."""
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    places: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """File and place of each entry, for example ("labels/a.txt", "line 3"); without, an entry is named by its id."""
    problems: list[Problem] = field(default_factory=list)
    """Entries that have no form in COCO."""
    notes: list[str] = field(default_factory=list)
    """What was understood in a way that a user should know."""
    totals_of_others: dict[str, int] = field(default_factory=dict)
    """Number of entries of further collections that `problems` name, such as "shards"."""
    named: bool = False
    """Whether the format has class names only. The category ids are then ours, and other data may have others."""

    @property
    def totals(self) -> dict[str, int]:
        """Return the number of entries of each collection, those in `problems` included."""
        lost = [problem.collection for problem in self.problems]
        counts = {collection: len(getattr(self, collection)) + lost.count(collection) for collection in COLLECTIONS}
        return {**counts, **self.totals_of_others}


def read_document(
    path: Path, images_dir: Path, name: str | None = None, *, needed: Sequence[str] = COLLECTIONS
) -> Document:
    """Read a COCO file after checking that its collections are lists.

    Args:
        path: the file.
        images_dir: the folder of its images.
        name: the file as messages name it; by default its file name.
        needed: the collections that the file must have; the others may be missing, and are then empty.

    Raises:
        DatasetError: the file cannot be read, or is not a COCO file.
    """
    name = path.name if name is None else name
    try:
        with _garbage_collection_paused():
            content = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(
            f"{name}: is not valid JSON: {error.msg.removesuffix(' at')} at {position}. Is it complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name}: is not text in UTF-8: byte {error.start} cannot be read.") from error
    except RecursionError as error:
        raise DatasetError(f"{name}: is nested too deeply to be a COCO file.") from error
    if type(content) is not dict:
        raise DatasetError(f"{name}: must be a JSON object with {list(COLLECTIONS)}, got {shown(content)}.")
    missing = [key for key in needed if key not in content]
    if missing:
        raise DatasetError(f"{name}: has no {missing}; a COCO file has {list(COLLECTIONS)}, got {list(content)}.")
    collections = [content.get(key, []) for key in COLLECTIONS]
    for key, entries in zip(COLLECTIONS, collections, strict=True):
        if type(entries) is not list and key in needed:
            raise DatasetError(f"{name}: {key!r} must be a list, got {shown(entries)}.")
    return Document(name, images_dir, *collections)


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
