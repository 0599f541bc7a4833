"""Read a COCO file: collect the valid entries and the problems of the others."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino.data.coco.checks import Finding, check_annotation, check_category, check_image
from dino.data.coco.problems import DatasetError, Problem, shown

COLLECTIONS = ("images", "annotations", "categories")


def read_document(path: Path) -> dict[str, list[Any]]:
    """Return the document after checking that its three collections are lists."""
    try:
        with _garbage_collection_paused():
            document = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(
            f"{path.name}: is not valid JSON: {error.msg.removesuffix(' at')} at {position}. Is it complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name}: is not text in UTF-8: byte {error.start} cannot be read.") from error
    except RecursionError as error:
        raise DatasetError(f"{path.name}: is nested too deeply to be a COCO file.") from error
    if type(document) is not dict:
        raise DatasetError(f"{path.name}: must be a JSON object with {list(COLLECTIONS)}, got {shown(document)}.")
    missing = [key for key in COLLECTIONS if key not in document]
    if missing:
        raise DatasetError(f"{path.name}: has no {missing}; a COCO file has {list(COLLECTIONS)}, got {list(document)}.")
    for key in COLLECTIONS:
        if type(document[key]) is not list:
            raise DatasetError(f"{path.name}: {key!r} must be a list, got {shown(document[key])}.")
    return document


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


class CocoReader:
    """The valid entries of a document, and the problems of the others."""

    def __init__(self, document: dict[str, list[Any]]) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._category_ids: set[int] = set()
        self._images: dict[int, dict[str, Any]] = {}
        self._dropped_images: set[int] = set()

    def categories(self) -> list[dict[str, Any]]:
        valid = self._filter("categories", check_category)
        self._category_ids = {category["id"] for category in valid}
        return sorted(valid, key=lambda category: category["id"])

    def images(self, images_dir: Path) -> list[dict[str, Any]]:
        if not images_dir.is_dir():
            raise DatasetError(f"{images_dir}: the images folder does not exist or is not a folder.")
        files = _Files(images_dir)
        valid = []
        for image in self._filter("images", check_image):
            if image["file_name"] in files:
                valid.append(image)
            else:
                what = f"the file {shown(image['file_name'])} is missing from {images_dir}"
                self.problems.append(Problem("images", "missing file", self._where("images", image, 0), what))
        self._images = {image["id"]: image for image in valid}
        ids = (image["id"] for image in self.document["images"] if type(image) is dict and type(image.get("id")) is int)
        self._dropped_images = {image_id for image_id in ids if image_id not in self._images}
        return sorted(valid, key=lambda image: image["id"])

    def annotations(self) -> list[dict[str, Any]]:
        sizes = {image_id: (image["width"], image["height"]) for image_id, image in self._images.items()}

        def check(entry: Any, seen: set[int]) -> Finding | None:
            return check_annotation(entry, seen, sizes, self._dropped_images, self._category_ids)

        return self._filter("annotations", check)

    def _filter(self, collection: str, check: Callable[[Any, set[int]], Finding | None]) -> list[dict[str, Any]]:
        valid, seen = [], set()
        for position, entry in enumerate(self.document[collection]):
            finding = check(entry, seen)
            if finding is None:
                valid.append(entry)
            else:
                self.problems.append(
                    Problem(collection, finding[0], self._where(collection, entry, position), finding[1])
                )
            if type(entry) is dict and type(entry.get("id")) is int:
                seen.add(entry["id"])
        return valid

    def _where(self, collection: str, entry: Any, position: int) -> str:
        one = {"images": "image", "annotations": "annotation", "categories": "category"}[collection]
        if type(entry) is not dict or type(entry.get("id")) is not int:
            return f"{collection}[{position}]"
        if collection == "images" and isinstance(entry.get("file_name"), str):
            return f"{one} {entry['id']} ({entry['file_name'][:80]})"
        image_id = entry.get("image_id")
        if collection == "annotations" and type(image_id) is int and image_id in self._images:
            return f"{one} {entry['id']} (image {image_id}, {self._images[image_id]['file_name'][:80]})"
        return f"{one} {entry['id']}"


class _Files:
    """The existing files, from one listing of each folder: a query per image is slow on a network file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listings: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        folder, base = os.path.split(name)
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(self._root / folder))
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = frozenset()
        return base in self._listings[folder]
