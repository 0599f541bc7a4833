"""The images and boxes of a split, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino.data.categories import Categories
from dino.data.coco.columns import Columns, Names
from dino.data.coco.document import Document
from dino.data.coco.problems import DatasetError, Problems
from dino.data.coco.reader import Content, check_document
from dino.data.coco.store import read_content


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images sorted by id, and their boxes as arrays. Built by `CocoIndex.load` or `from_document`."""

    annotation_file: Path
    name: str
    """The annotations as messages name them."""
    images_dir: Path
    categories: Categories
    """Sorted by id: the label of a category is its rank."""
    columns: Columns
    problems: Problems
    """Entries that were skipped; empty unless loaded with skip_invalid."""
    totals: dict[str, int]
    """Entries of each collection in the file, skipped ones included."""
    named: bool = False
    """Whether the format has class names only, so that the category ids are ours."""
    notes: tuple[str, ...] = ()
    """What was understood in a way that a user should know."""

    @classmethod
    def load(
        cls,
        annotation_file: str | Path,
        images_dir: str | Path,
        *,
        name: str | None = None,
        skip_invalid: bool = False,
    ) -> CocoIndex:
        """Read and check a COCO file.

        Images without annotations are kept. Crowds and boxes without extent are in `ground_truth`, but not in
        `training_boxes`. What is read from a large file is kept beside it, and read from there the next time.

        Args:
            annotation_file: JSON with `images`, `annotations` and `categories`.
            images_dir: the folder that `file_name` is relative to.
            name: the file as messages name it; by default its file name.
            skip_invalid: leave invalid entries out and list them in `problems`, instead of raising.

        Raises:
            DatasetError: an entry is invalid and `skip_invalid` is off, or the file as a whole cannot be used.
        """
        file = Path(annotation_file)
        document = Document(file.name if name is None else name, Path(images_dir), [], [], [])
        return cls._of(read_content(file, document), document, file, skip_invalid)

    @classmethod
    def from_document(cls, document: Document, annotation_file: Path, *, skip_invalid: bool = False) -> CocoIndex:
        """Check a document of any format; see `load`."""
        return cls._of(check_document(document), document, annotation_file, skip_invalid)

    @classmethod
    def _of(cls, content: Content, document: Document, file: Path, skip_invalid: bool) -> CocoIndex:
        problems, totals, columns = content.problems, content.totals, content.columns
        if problems and not skip_invalid:
            # Skipping must leave something of what there is.
            boxes = len(columns.areas) or not totals["annotations"]
            advice = " or pass --skip-invalid" if content.categories and len(columns) and boxes else ""
            raise DatasetError("\n".join(problems.describe(document.name, totals, advice=advice)))
        for collection, valid in (("categories", content.categories), ("images", columns.image_ids)):
            if len(valid) == 0:
                lines = problems.describe(document.name, totals, advice=None)
                raise DatasetError("\n".join([f"{document.name}: has no valid {collection}.", *lines]))
        return cls(
            annotation_file=file,
            name=document.name,
            images_dir=document.images_dir,
            categories=Categories.from_json(content.categories),
            columns=columns,
            problems=problems,
            totals=totals,
            named=document.named,
            notes=tuple(document.notes),
        )

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def image_ids(self) -> np.ndarray:
        """Return the ids of the images, int64 [N]."""
        return self.columns.image_ids

    @property
    def file_names(self) -> Names:
        """Return the paths of the images, relative to `images_dir`."""
        return self.columns.file_names

    @property
    def sizes_wh(self) -> np.ndarray:
        """Return width and height of the images in pixels, int64 [N, 2]."""
        return self.columns.sizes_wh

    def select(self, positions: Sequence[int]) -> CocoIndex:
        """Return an index of the images at some positions, in their order."""
        return dataclasses.replace(self, columns=self.columns.select(np.array(positions, dtype=np.int64)))

    def image_path(self, position: int) -> Path:
        """Return the path of the image at a position of the index."""
        return self.images_dir / self.file_names[position]

    def training_boxes(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes to train on: without crowds, clipped to the image, none without extent.

        Returns:
            boxes_xyxy float32 [T, 4], pixels; category ids int64 [T].
        """
        columns = self.columns
        here = columns.boxes_of(position)
        boxes = columns.boxes_xywh[here].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        width, height = columns.sizes_wh[position]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        keep = ~columns.crowds[here] & (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[keep], columns.class_ids[columns.classes[here][keep]]

    @property
    def boxes_per_category(self) -> dict[int, tuple[int, int]]:
        """Return the number of boxes and of crowds among them of each category id that has any."""
        found = zip(self.columns.class_ids.tolist(), *self.columns.boxes_per_class.tolist(), strict=True)
        return {category_id: (boxes, crowds) for category_id, boxes, crowds in found if boxes}

    def ground_truth(self) -> dict[str, Any]:
        """Return the valid entries as a COCO document for the evaluator, with crowds and boxes without extent.

        Annotations are renumbered from 1: evaluators read a match with annotation 0 as no match.
        """
        columns = self.columns
        images = [
            {"id": int(image_id), "file_name": name, "width": int(width), "height": int(height)}
            for image_id, name, (width, height) in zip(self.image_ids, self.file_names, self.sizes_wh, strict=True)
        ]
        owners = iter(np.repeat(self.image_ids, columns.num_boxes).tolist())
        annotations = []
        for rows in columns.rows():
            parts = (
                columns.class_ids[columns.classes[rows]].tolist(),
                columns.boxes_xywh[rows].tolist(),
                columns.areas[rows].tolist(),
                columns.crowds[rows].astype(int).tolist(),
            )
            keys = ("category_id", "bbox", "area", "iscrowd")
            for values in zip(*parts, strict=True):
                number = len(annotations) + 1
                annotations.append({"id": number, "image_id": next(owners), **dict(zip(keys, values, strict=True))})
        return {"info": {}, "images": images, "annotations": annotations, "categories": self.categories.to_json()}

    def describe_problems(self) -> list[str]:
        """Return a line for each kind of entry that was skipped."""
        return self.problems.describe(self.name, self.totals, advice=None)
