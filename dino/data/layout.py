"""Recognise the format of a data set and find its splits."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from dino.common.text import shorten
from dino.data.coco.problems import DatasetError
from dino.data.folders import folders_of
from dino.data.formats import box_table, coco_json, voc, webdataset, yolo
from dino.data.shards import packed_shard
from dino.data.split import Layout, Split

__all__ = ["Layout", "Split", "find_splits"]
FORMATS = (coco_json, yolo, voc, box_table, webdataset)


def find_splits(root: str | Path) -> Layout:
    """Recognise a data set in COCO JSON, YOLO txt, Pascal VOC XML, CSV of boxes or WebDataset shards; find its splits.

    Only the names and the beginnings of files are read. dino/data/README.md shows the layouts.

    Args:
        root: the folder of the data, or one file: a COCO JSON, a `data.yaml`, a CSV or a shard. If a folder holds data
            in two formats, its folder `annotations` or `labels` chooses one.

    Raises:
        DatasetError: no format or more than one was recognised, or a split is in two places.
        ImportError: a package that reads the format is missing.
    """
    root = Path(root)
    if not root.exists():
        raise DatasetError(f"{root}: no such file or folder.")
    inner = root.is_dir() and root.name.lower() in ("annotations", "labels")
    found = _recognised(root.parent, root) if inner else []
    found = found or _recognised(root, None)
    if len(found) > 1:
        kinds = " and ".join(f"{layout.format} ({layout.sources})" for layout in found)
        choices = dict.fromkeys(str(_choice(layout)) for layout in found)
        clear = len(choices) == len(found) and all(map(os.path.exists, choices))
        advice = f"Pass one as --data: {' or '.join(choices)}" if clear else "Move all but one away"
        raise DatasetError(f"{root}: holds {kinds}. {advice}.")
    if not found:
        raise DatasetError(f"{root}: {_not_recognised(root)}")
    return found[0]


def _recognised(root: Path, chosen: Path | None) -> list[Layout]:
    """Return the layout of each recognised format; with `chosen`, only those whose annotations are in that folder."""
    found = [layout for layout in (one.find(root) for one in FORMATS) if layout is not None]
    if chosen is None:
        return found
    inside = [
        {name: split for name, split in layout.splits.items() if split.annotations.is_relative_to(chosen)}
        for layout in found
    ]
    none = dict.fromkeys(("train", "valid", "test"))
    return [
        dataclasses.replace(layout, **{**none, **splits})
        for layout, splits in zip(found, inside, strict=True)
        if splits
    ]


def _choice(layout: Layout) -> Path:
    annotations = next(iter(layout.splits.values())).annotations
    places = (path for path in (annotations, *annotations.parents) if path.name.lower() in ("annotations", "labels"))
    return next((path for path in places if path.is_relative_to(layout.root)), annotations)


def _not_recognised(root: Path) -> str:
    packed = [line for folder in folders_of(root) if (line := packed_shard(folder)) is not None]
    if packed:
        return f"{packed[0]}."
    if root.is_file():
        return "not recognised as a COCO JSON, a data.yaml, a CSV of boxes or a tar shard with boxes."
    entries = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    return (
        f"no boxes found in COCO JSON, YOLO txt, Pascal VOC XML, CSV or tar shards. It holds "
        f"{shorten(entries, 6) or 'nothing'}. dino/data/README.md shows the layouts."
    )
