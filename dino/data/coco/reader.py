"""Check the entries of a split in COCO's form: valid ones become columns, others problems."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dino.data.coco.absolute import find_pictures, is_absolute
from dino.data.coco.at_once import Images, boxes_at_once
from dino.data.coco.boxes import BoxStore
from dino.data.coco.checks import Finding, check_annotation, check_category, check_image
from dino.data.coco.columns import Columns, Names, Output
from dino.data.coco.document import Document
from dino.data.coco.files import Files, picture_sizes
from dino.data.coco.lenient import obvious_reading
from dino.data.coco.problems import DatasetError, Problem, Problems, shown
from dino.data.coco.stream import COLLECTIONS
from dino.data.folders import split_of, split_of_path

_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}


class Content(NamedTuple):
    """The valid entries of a split."""

    categories: list[dict[str, Any]]
    """Sorted by id."""
    columns: Columns
    problems: Problems
    """What is wrong with the others."""
    totals: dict[str, int]
    """Number of entries of each collection, invalid ones included."""


def check_document(document: Document) -> Content:
    """Check all entries of a document.

    Raises:
        DatasetError: there is no folder of images.
    """
    reader = CocoReader(document)
    for collection in ("categories", "images", "annotations"):
        reader.read(collection, [getattr(document, collection)])
    return reader.content()


class CocoReader:
    """Reads collections with `read`; when they are `complete`, `content` returns the valid entries.

    Args:
        document: what messages need. Its entries are not looked at.
        folder: where boxes are stored, which then take no memory; None: in memory.
    """

    def __init__(self, document: Document, folder: Path | None = None) -> None:
        self.document = document
        self.files = Files(document.images_dir, split_of_path(document.name))
        self.totals = dict.fromkeys(COLLECTIONS, 0)
        """Entries of each collection."""
        self.categories: list[dict[str, Any]] = []
        """The valid categories, sorted by id."""
        self.unsized: list[str] = []
        """Images whose size is not in the annotations, but was read from the file."""
        self.complete = False
        """Whether the annotations were checked. If not, read them again: images or categories came after them."""
        self._folder = folder
        self._problems = {collection: Problems() for collection in COLLECTIONS}
        self._category_ids: set[int] | None = None
        self._images: Images | None = None
        self._dropped_images: set[int] = set()
        self._boxes = BoxStore(folder)
        self._used: set[int] = set()  # categories of the boxes

    def read(self, collection: str, blocks: Iterable[list[Any]]) -> None:
        """Read a collection. If it was read before, this reading counts."""
        self.totals[collection] = 0
        self._problems[collection] = Problems()
        {"categories": self._read_categories, "images": self._read_images, "annotations": self._read_annotations}[
            collection
        ](blocks)

    @property
    def problems(self) -> Problems:
        """Return the problems so far."""
        found = Problems(self.document.problems)
        for collection in ("categories", "images", "annotations"):
            found += self._problems[collection]
        return found

    def content(self) -> Content:
        """Return what was read. Call it once."""
        lost = Problems(self.document.problems)
        totals = {key: count + lost.count(key) for key, count in self.totals.items()} | self.document.totals_of_others
        return Content(self.categories, self._columns(), self.problems, totals)

    def _columns(self) -> Columns:
        assert self._images is not None
        class_ids = np.array([category["id"] for category in self.categories], dtype=np.int64)
        count, smallest = len(self._boxes), np.min_scalar_type(max(0, len(class_ids) - 1))
        outputs = {
            "boxes_xywh": Output("boxes_xywh", np.dtype(np.float64), (count, 4), self._folder),
            "classes": Output("classes", smallest, (count,), self._folder),
            "areas": Output("areas", np.dtype(np.float64), (count,), self._folder),
            "crowds": Output("crowds", np.dtype(np.bool_), (count,), self._folder),
        }
        num_boxes = self._boxes.boxes_per_image(len(self._images.ids))
        for boxes in self._boxes.by_image(num_boxes):
            classes = np.searchsorted(class_ids, boxes.category_ids)
            for name, output in outputs.items():
                output.write(classes if name == "classes" else getattr(boxes, name))
        self._boxes.close()
        of_boxes: dict[str, Any] = {name: output.finish() for name, output in outputs.items()}
        columns = Columns(
            image_ids=self._images.ids,
            sizes_wh=self._images.sizes_wh,
            file_names=Names.of(self._images.file_names),
            first_box=np.cumsum(num_boxes) - num_boxes,
            num_boxes=num_boxes,
            class_ids=class_ids,
            **of_boxes,
        )
        if self._folder is None:
            return columns
        columns.save_images(self._folder)
        return Columns.open(self._folder)

    def _read_categories(self, blocks: Iterable[list[Any]]) -> None:
        valid = [category for _, category in self._valid("categories", blocks, check_category)]
        self.categories = sorted(valid, key=itemgetter("id"))
        self._category_ids = {category["id"] for category in valid}
        self.complete = self.complete and self._used <= self._category_ids

    def _read_images(self, blocks: Iterable[list[Any]]) -> None:
        images_dir = self.document.images_dir
        if not images_dir.is_dir():
            raise DatasetError(f"{images_dir}: the images folder does not exist or is not a folder.")
        self.complete = False
        self._dropped_images = set()
        positions, ids, widths, heights = (array("q") for _ in range(4))
        stated: list[str] = []
        for position, image in self._valid("images", blocks, check_image):
            is_sized = "width" in image and "height" in image
            positions.append(position)
            ids.append(image["id"])
            widths.append(image["width"] if is_sized else 0)
            heights.append(image["height"] if is_sized else 0)
            stated.append(image["file_name"])
        split = split_of(self.document.name) or split_of(images_dir.name)
        names = find_pictures(self.files, stated, split)
        for row in [row for row, name in enumerate(names) if name is None]:
            what = f"the file {shown(stated[row])} is missing from {images_dir}"
            what += ", and so are its last parts" if is_absolute(stated[row]) else self.files.shards.hint(stated[row])
            self._drop("images", positions[row], {"id": ids[row], "file_name": stated[row]}, ("missing file", what))
        self.unsized = self._read_sizes(positions, ids, widths, heights, names)
        kept = np.array([row for row, name in enumerate(names) if name is not None], dtype=np.int64)
        image_ids = np.array(ids, dtype=np.int64)
        rows = kept[np.argsort(image_ids[kept])]
        sizes_wh = np.stack([np.array(widths, dtype=np.int64)[rows], np.array(heights, dtype=np.int64)[rows]], 1)
        self._images = Images(image_ids[rows], sizes_wh, [names[row] for row in rows.tolist()])
        self._dropped_images.difference_update(self._images.ids.tolist() if self._dropped_images else ())

    def _read_sizes(self, positions: array, ids: array, widths: array, heights: array, names: list) -> list[str]:
        """Fill in sizes that are 0 from the files; return the names of these. In `names`, damaged ones become None."""
        unsized = [row for row, name in enumerate(names) if widths[row] == 0 and name is not None]
        sizes = picture_sizes([self.document.images_dir / names[row] for row in unsized]) if unsized else []
        for row, size in zip(unsized, sizes, strict=True):
            if size is not None:
                widths[row], heights[row] = size
                continue
            what = "has no width and height, and the file cannot be read as an image"
            entry = {"id": ids[row], "file_name": names[row]}
            self._drop("images", positions[row], entry, ("unreadable file", what))
            names[row] = None
        return [names[row] for row in unsized if names[row] is not None]

    def _read_annotations(self, blocks: Iterable[list[Any]]) -> None:
        self._boxes.clear()
        self._used = set()
        self.complete = self._images is not None
        for block in blocks:
            start = self.totals["annotations"]
            self.totals["annotations"] += len(block)
            if self._images is None or not self.complete:
                continue
            boxes = boxes_at_once(block, self._images, self._category_ids)
            if boxes is None and self._category_ids is None:
                self.complete = False
                continue
            if boxes is None:
                boxes = boxes_at_once(self._inspected(block, start), self._images, self._category_ids)
                assert boxes is not None
            self._boxes.add(boxes)
            self._used.update(np.unique(boxes.category_ids).tolist())

    def _inspected(self, block: list[Any], start: int) -> list[dict[str, Any]]:
        """Return the valid annotations of a block."""
        images, category_ids = self._images, self._category_ids
        assert images is not None and category_ids is not None

        def check(entry: Any, _seen: set[int]) -> Finding | None:
            return check_annotation(entry, images.size_of, self._dropped_images, category_ids)

        return [entry for _, entry in self._checked("annotations", block, start, check, set())]

    def _valid(
        self, collection: str, blocks: Iterable[list[Any]], check: Callable[[Any, set[int]], Finding | None]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the valid entries of a collection with their positions."""
        seen: set[int] = set()
        for block in blocks:
            start = self.totals[collection]
            self.totals[collection] += len(block)
            yield from self._checked(collection, block, start, check, seen)

    def _checked(
        self,
        collection: str,
        block: list[Any],
        start: int,
        check: Callable[[Any, set[int]], Finding | None],
        seen: set[int],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the valid entries of a block with their positions; `seen` are the ids before, and is extended."""
        for position, entry in enumerate(block, start):
            finding = check(entry, seen)
            if finding is not None:
                entry = obvious_reading(collection, entry)
                finding = check(entry, seen)
            if collection != "annotations" and type(entry) is dict and type(entry.get("id")) is int:
                seen.add(entry["id"])
            if finding is None:
                yield position, entry
            else:
                self._drop(collection, position, entry, finding)

    def _drop(self, collection: str, position: int, entry: Any, finding: Finding) -> None:
        places = self.document.places.get(collection)
        file, where = places[position] if places else (self.document.name, self._where(collection, entry, position))
        self._problems[collection].add(Problem(collection, finding[0], where, finding[1], file))
        if collection == "images" and type(entry) is dict and type(entry.get("id")) is int:
            self._dropped_images.add(entry["id"])

    def _where(self, collection: str, entry: Any, position: int) -> str:
        if type(entry) is not dict:
            return f"{collection}[{position}]"
        entry_id = entry.get("id")
        known = type(entry_id) is int or (collection == "annotations" and type(entry_id) is str and entry_id)
        name = f"{_ONE[collection]} {str(entry_id)[:80]}" if known else f"{collection}[{position}]"
        if collection == "images" and known and isinstance(entry.get("file_name"), str):
            return f"{name} ({entry['file_name'][:80]})"
        image_id = entry.get("image_id")
        images = self._images if collection == "annotations" else None
        row = None if images is None else images.row_of(image_id)
        if images is not None and row is not None:
            return f"{name} (image {image_id}, {images.file_names[row][:80]})"
        return name
