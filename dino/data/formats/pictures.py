"""Find the picture that an annotation names, and build a document from pictures and boxes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dino.data.coco.document import Document
from dino.data.coco.files import Files, is_picture, picture_sizes
from dino.data.coco.problems import Problem
from dino.data.folders import endings, folders_of, split_of
from dino.data.split import relative


class Pictures:
    """The pictures in some folders, by the names that annotations give them.

    Args:
        folders: where to look, the likeliest first.
        split: the split of the annotations, if it has a name.
    """

    def __init__(self, folders: Iterable[Path], split: str | None = None) -> None:
        self._split = split
        self._folders = [Files(folder, split) for folder in dict.fromkeys(folders)]

    def find(self, text: str) -> Path | None:
        """Return the path of a picture, or None.

        The path may be absolute, have Windows separators, or be of another machine: then its last parts count.
        """
        direct = Path(text)
        if direct.is_absolute() and direct.is_file():
            return direct
        names = list(endings(text, self._split))
        for look in (self._loose, lambda files, name: files.shards.find(name)):
            for name, files in product(names, self._folders):
                found = look(files, name)
                if found is not None:
                    return files.root / found
        return None

    @staticmethod
    def _loose(files: Files, name: str) -> str | None:
        return files.find(name, in_shards=False) or Pictures._similar(files, name)

    @staticmethod
    def _similar(files: Files, name: str) -> str | None:
        """Return the only picture of the same name whose suffix is added, or is in another case."""
        folder, base = os.path.split(name)
        wanted = base.lower() if is_picture(base) else None
        similar = [
            found
            for found in files.listing(folder).values()
            if is_picture(found) and (_stem(found) == base if wanted is None else found.lower() == wanted)
        ]
        return os.path.join(folder, similar[0]) if len(similar) == 1 else None


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def image_folders(file: Path, root: Path, split: str | None) -> list[Path]:
    """Return where the pictures of an annotation file may be, the likeliest first: not in a folder of another split."""
    found = [file.parent, file.parent / "images"]
    below = folders_of(root)
    if split is not None:
        fitting = [folder for folder in below if _split_of_path(folder, root) == split]
        below = fitting + [folder for folder in below if _split_of_path(folder, root) is None]
    return [folder for folder in dict.fromkeys(found + below) if folder.is_dir()]


def _split_of_path(folder: Path, root: Path) -> str | None:
    return next((s for s in map(split_of, folder.relative_to(root).parts) if s is not None), None)


class Builder:
    """Collects the entries of a document with their places.

    Args:
        name: the annotations as messages name them.
        root: the folder of the data, which messages leave out.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self._images: dict[Path, tuple[str, str]] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._boxes: list[tuple[Path, Any, Sequence[float], bool]] = []
        self._box_places: list[tuple[str, str]] = []

    @property
    def pictures(self) -> list[Path]:
        """Return the pictures added so far, sorted."""
        return sorted(self._images)

    def image(self, path: Path, file: Path, where: str = "", size: tuple[int, int] | None = None) -> None:
        """Add a picture, once, which `file` names at `where`; `size` if the annotations state it."""
        self._images.setdefault(path, (relative(file, self.root), where))
        if size is not None:
            self._sizes.setdefault(path, size)

    def read_sizes(self) -> dict[Path, tuple[int, int]]:
        """Return the size of each picture that can be read; only those without a stated size are opened."""
        unsized = [path for path in self._images if path not in self._sizes]
        for path, size in zip(unsized, picture_sizes(unsized) if unsized else [], strict=True):
            if size is not None:
                self._sizes[path] = size
        return self._sizes

    def box(
        self, picture: Path, category: Any, box_xywh: Sequence[float], file: Path, where: str, *, crowd: bool = False
    ) -> None:
        """Add a box in pixels; `category` is a class's name, or its id."""
        self._boxes.append((picture, category, box_xywh, crowd))
        self._box_places.append((relative(file, self.root), where))

    def problem(self, collection: str, kind: str, file: Path, where: str, what: str) -> None:
        """Add an entry that cannot become one of a COCO file."""
        self.problems.append(Problem(collection, kind, where, what, relative(file, self.root)))

    def document(self, categories: Mapping[int, str] | None = None) -> Document:
        """Return the document. Without `categories`, they are the names of the boxes, sorted and numbered from 1."""
        pictures = self.pictures
        images_dir = self.root
        if not all(path.is_relative_to(self.root) for path in pictures):
            images_dir = Path(os.path.commonpath([self.root, *pictures]))
        ids = {path: k for k, path in enumerate(pictures, start=1)}
        sizes = {path: dict(zip(("width", "height"), size, strict=True)) for path, size in self._sizes.items()}
        names = sorted({category for _, category, _, _ in self._boxes}) if categories is None else []
        numbers = {name: k for k, name in enumerate(names, start=1)}
        known = dict(categories or {k: name for name, k in numbers.items()})
        return Document(
            self.name,
            images_dir,
            [
                {"id": ids[path], "file_name": path.relative_to(images_dir).as_posix(), **sizes.get(path, {})}
                for path in pictures
            ],
            [
                {
                    "image_id": ids[path],
                    "category_id": category if categories is not None else numbers[category],
                    "bbox": list(box),
                    "iscrowd": int(crowd),
                }
                for path, category, box, crowd in self._boxes
            ],
            [{"id": k, "name": name} for k, name in known.items()],
            {
                "images": [self._images[path] for path in pictures],
                "annotations": self._box_places,
                "categories": [(self.name, f"class {name!r}") for name in known.values()],
            },
            self.problems,
            self.notes,
            named=categories is None,
        )
