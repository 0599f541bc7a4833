"""The entries of one split in COCO's form, read from a file of any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.data.coco.problems import Problem
from dino.data.coco.stream import COLLECTIONS, read_collections


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


def read_document(
    path: Path, images_dir: Path, name: str | None = None, *, needed: Sequence[str] = COLLECTIONS
) -> Document:
    """Read a COCO file into memory after checking that its collections are lists.

    Args:
        path: the file.
        images_dir: the folder of its images.
        name: the file as messages name it; by default its file name.
        needed: the collections that are read, and that the file must have; the others are empty.

    Raises:
        DatasetError: the file cannot be read, or is not a COCO file.
    """
    document = Document(path.name if name is None else name, images_dir, [], [], [])
    for key, blocks in read_collections(path, document.name, needed=needed):
        if key in needed:
            setattr(document, key, [entry for block in blocks for entry in block])
    return document
