"""COCO JSON in any of the usual layouts."""

from __future__ import annotations

import json
import mmap
import os
import re
from itertools import islice
from pathlib import Path

from dino.data.coco.absolute import find_pictures
from dino.data.coco.files import Files
from dino.data.formats.one_file import find_layout
from dino.data.formats.pictures import image_folders
from dino.data.split import Layout, Split

NAME = "COCO JSON"
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_SAMPLED = 20
_SEARCHED_FIRST = 1 << 20
"""Bytes at the beginning and at the end: where most keys of a large file are."""


def find(root: Path) -> Layout | None:
    """Return the splits of a folder or file in COCO's format, or None."""
    return find_layout(root, NAME, (".json",), _is_coco, _split)


def _split(file: Path, root: Path, split: str | None) -> Split:
    """Return the split with the folder that holds most of the images named first in the file."""
    names, folders = _sampled_names(file), image_folders(file, root, split)
    for in_shards in (False, True):
        places = [find_pictures(Files(folder, split), names, split, in_shards=in_shards) for folder in folders]
        found = [sum(path is not None and not os.path.isabs(path) for path in paths) for paths in places]
        if max(found) > 0:
            break
    named = [folder for folder in folders if split is not None and folder != file.parent and split in folder.name]
    likeliest = folders[found.index(max(found))] if max(found) > 0 else (named or [file.parent])[0]
    return Split(likeliest, file, root)


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            ends = max(0, len(content) - _SEARCHED_FIRST)
            return all(
                content.find(key, 0, _SEARCHED_FIRST) >= 0 or content.find(key, ends) >= 0 or content.find(key) >= 0
                for key in (b'"images"', b'"categories"', b'"annotations"')
            )
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def _sampled_names(file: Path) -> list[str]:
    """Return the first file names in a file, without reading it as a whole."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = [match[1] for match in islice(_FILE_NAME.finditer(content), _SAMPLED)]
            return [json.loads(name) for name in found]
    except (OSError, ValueError):
        return []
