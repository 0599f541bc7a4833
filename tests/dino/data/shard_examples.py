"""Small tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from dino.data import CocoIndex, find_splits


def write_shard(path: Path, files: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """Write a tar file, of a name twice if it is in `files` twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def jpeg(width: int = 96, height: int = 72, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, "JPEG", **options)
    return content.getvalue()


def boxes_of(name: str = "cat", **fields: Any) -> bytes:
    return json.dumps({"annotations": [{"bbox": [8, 10, 32, 20], "category": name, **fields}]}).encode()


def coco_file(root: Path, *names: str) -> None:
    """Write a COCO file of pictures of the size of `jpeg()`, with a box in the first."""
    images = [{"id": k, "file_name": name, "width": 96, "height": 72} for k, name in enumerate(names)]
    annotations = [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    (root / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [CATEGORY]})
    )


CATEGORY = {"id": 1, "name": "cat"}
GOOD = (("good.jpg", jpeg()), ("good.json", boxes_of()))


def load(root: Path, *, skip_invalid: bool = False) -> CocoIndex:
    return find_splits(root).require("train").load(skip_invalid=skip_invalid)
