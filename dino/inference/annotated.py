"""Find images in an annotation file: their ids, sizes and entries."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.data.coco.checks import check_id, check_size
from dino.data.coco.document import Document, read_document
from dino.data.coco.lenient import obvious_reading
from dino.inference.sources import Source


@dataclass(frozen=True)
class Annotated:
    """An image as an annotation file states it."""

    entry: dict[str, Any]
    """Its entry, with the obvious reading of each field."""

    @property
    def id(self) -> int:
        """Image id."""
        return self.entry["id"]

    @property
    def size_wh(self) -> tuple[int, int] | None:
        """Width and height; None if the file has none, which ids do not need."""
        return (self.entry["width"], self.entry["height"]) if {"width", "height"} <= self.entry.keys() else None


def coco_images(annotations: Path | Document, sources: Iterable[Source]) -> dict[str, Annotated]:
    """Return images by path, found in a COCO file by the end of the path, or by the file name alone.

    Entries of other images are not checked.

    Args:
        annotations: the file, or what `read_document` returned.
        sources: the images.

    Raises:
        ValueError: the COCO file is invalid, or lacks an image, or has it more than once, or its entry is invalid.
    """
    if isinstance(annotations, Path):
        annotations = read_document(annotations, annotations.parent, str(annotations), needed=("images",))
    file = annotations.name
    by_name: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {}
    for stated in annotations.images:
        entry = obvious_reading("images", stated)
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name:
            parts = _parts(name)
            by_name.setdefault(parts[-1], []).append((parts, entry))
    found: dict[str, Annotated] = {}
    owners: dict[int, str] = {}
    for source in sources:
        entry = _entry_of(source, by_name, file)
        finding = check_id(entry, "id") or check_size(entry)
        if finding is not None:
            raise ValueError(f"{file}: the image {source.name}: {finding[1]}")
        found[source.path] = Annotated(entry)
        other = owners.setdefault(entry["id"], source.path)
        if other != source.path:
            raise ValueError(f"{file}: image {entry['id']} would be both {other} and {source.path}")
    return found


def _entry_of(
    source: Source, by_name: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]], file: str
) -> dict[str, Any]:
    path = _parts(os.path.abspath(source.path))
    candidates = by_name.get(path[-1], [])
    # Names that the path ends in come first. Of others, such as paths of another machine, the last parts count.
    whole = [(parts, entry) for parts, entry in candidates if path[-len(parts) :] == parts]
    longest = max((_common(path, parts) for parts, _ in whole or candidates), default=0)
    fitting = [entry for parts, entry in whole or candidates if _common(path, parts) == longest]
    if len(fitting) != 1:
        how_often = "does not have" if not fitting else f"has {len(fitting)} images called"
        raise ValueError(f"{file}: {how_often} {source.name}; its image id is not known")
    return fitting[0]


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path with the separators of any system, accented letters composed (NFC)."""
    normal = unicodedata.normalize("NFC", name)
    return Path(normal).parts if "/" in normal else Path(normal.replace("\\", "/")).parts or (normal,)


def _common(path: Sequence[str], end: Sequence[str]) -> int:
    """Return how many of their last parts are equal."""
    pairs = zip(reversed(path), reversed(end), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(path), len(end)))
