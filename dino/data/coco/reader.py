"""Check a document: collect the valid entries and the problems of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dino.data.coco.absolute import find_pictures, is_absolute
from dino.data.coco.checks import Finding, check_annotation, check_category, check_image
from dino.data.coco.document import Document
from dino.data.coco.files import Files, picture_sizes
from dino.data.coco.lenient import obvious_reading
from dino.data.coco.problems import DatasetError, Problem, shown
from dino.data.split_names import split_of

_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}


class CocoReader:
    """The valid entries of a document, and the problems of the others."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = list(document.problems)
        self._category_ids: set[int] = set()
        self._images: dict[int, dict[str, Any]] = {}
        self._dropped_images: set[int] = set()

    def categories(self) -> list[dict[str, Any]]:
        valid = [category for _, category in self._filter("categories", check_category)]
        self._category_ids = {category["id"] for category in valid}
        return sorted(valid, key=lambda category: category["id"])

    def images(self) -> list[dict[str, Any]]:
        images_dir = self.document.images_dir
        if not images_dir.is_dir():
            raise DatasetError(f"{images_dir}: the images folder does not exist or is not a folder.")
        checked, found = self._filter("images", check_image), []
        split = split_of(self.document.name) or split_of(images_dir.name)
        names = find_pictures(Files(images_dir), [image["file_name"] for _, image in checked], split)
        for (position, image), name in zip(checked, names, strict=True):
            if name is None:
                what = f"the file {shown(image['file_name'])} is missing from {images_dir}"
                what += ", and so are its last parts" if is_absolute(image["file_name"]) else ""
                self._drop("images", position, image, ("missing file", what))
            else:
                found.append((position, image if name == image["file_name"] else {**image, "file_name": name}))
        valid = self._sized(found)
        self._images = {image["id"]: image for image in valid}
        self._dropped_images -= set(self._images)
        return sorted(valid, key=lambda image: image["id"])

    def annotations(self) -> list[dict[str, Any]]:
        sizes = {image_id: (image["width"], image["height"]) for image_id, image in self._images.items()}

        def check(entry: Any, _seen: set[int]) -> Finding | None:
            return check_annotation(entry, sizes, self._dropped_images, self._category_ids)

        return [annotation for _, annotation in self._filter("annotations", check)]

    def _sized(self, images: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the images, with the size of the file where the entry has none."""
        unsized = [(p, image) for p, image in images if "width" not in image or "height" not in image]
        paths = [self.document.images_dir / image["file_name"] for _, image in unsized]
        sizes = {p: size for (p, _), size in zip(unsized, picture_sizes(paths) if paths else [], strict=True)}
        valid = []
        for position, image in images:
            size = sizes.get(position)
            if size is not None:
                valid.append({**image, "width": size[0], "height": size[1]})
            elif position in sizes:
                what = "has no width and height, and the file cannot be read as an image"
                self._drop("images", position, image, ("unreadable file", what))
            else:
                valid.append(image)
        return valid

    def _filter(
        self, collection: str, check: Callable[[Any, set[int]], Finding | None]
    ) -> list[tuple[int, dict[str, Any]]]:
        """Return the valid entries of a collection with their positions."""
        valid, seen = [], set()
        for position, entry in enumerate(getattr(self.document, collection)):
            finding = check(entry, seen)
            if finding is not None:
                entry = obvious_reading(collection, entry)
                finding = check(entry, seen)
            if finding is None:
                valid.append((position, entry))
            else:
                self._drop(collection, position, entry, finding)
            if collection != "annotations" and type(entry) is dict and type(entry.get("id")) is int:
                seen.add(entry["id"])
        return valid

    def _drop(self, collection: str, position: int, entry: Any, finding: Finding) -> None:
        places = self.document.places.get(collection)
        file, where = places[position] if places else (self.document.name, self._where(collection, entry, position))
        self.problems.append(Problem(collection, finding[0], where, finding[1], file))
        if collection == "images" and type(entry) is dict and type(entry.get("id")) is int:
            self._dropped_images.add(entry["id"])

    def _where(self, collection: str, entry: Any, position: int) -> str:
        if type(entry) is not dict:
            return f"{collection}[{position}]"
        entry_id = entry.get("id")
        known = type(entry_id) is int or (collection == "annotations" and type(entry_id) is str and entry_id)
        name = f"{_ONE[collection]} {str(entry_id)[:80]}" if known else f"{collection}[{position}]"
        image_id = entry.get("image_id")
        if collection == "images" and known and isinstance(entry.get("file_name"), str):
            return f"{name} ({entry['file_name'][:80]})"
        if collection == "annotations" and type(image_id) is int and image_id in self._images:
            return f"{name} (image {image_id}, {self._images[image_id]['file_name'][:80]})"
        return name
