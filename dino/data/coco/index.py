"""A validated index of the boxes of a split, small enough for a copy in every worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino.data.categories import Categories
from dino.data.coco.document import Document, read_document
from dino.data.coco.problems import DatasetError, Problem, describe
from dino.data.coco.reader import CocoReader


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images sorted by id, and their annotations as arrays. Built by `CocoIndex.load` or `from_document`."""

    annotation_file: Path
    name: str
    """The annotations as messages name them."""
    images_dir: Path
    categories: Categories
    """Sorted by id: the label of a category is its rank."""
    image_ids: np.ndarray  # [N] int64
    file_names: tuple[str, ...]  # N, relative to images_dir
    sizes_wh: np.ndarray  # [N, 2] int64, pixels
    first_annotation: np.ndarray  # [N + 1] int64: image i has annotations first[i] to first[i + 1]
    boxes_xywh: np.ndarray  # [A, 4] float64, as in the file
    category_ids: np.ndarray  # [A] int64
    areas: np.ndarray  # [A] float64; width * height if the file has none
    crowds: np.ndarray  # [A] bool
    problems: tuple[Problem, ...]
    """Entries that were skipped, in the order of the file; empty unless loaded with skip_invalid."""
    totals: dict[str, int]
    """Entries of each collection in the file, skipped ones included."""
    named: bool = False
    """Whether the format has class names only, so that the category ids are ours."""
    notes: tuple[str, ...] = ()
    """What was understood in a way that a user should know."""

    @classmethod
    def load(cls, annotation_file: str | Path, images_dir: str | Path, *, skip_invalid: bool = False) -> CocoIndex:
        """Read and check a COCO file.

        Images without annotations are kept. Crowds and boxes without extent are in `ground_truth`, but not in
        `training_boxes`.

        Args:
            annotation_file: JSON with `images`, `annotations` and `categories`.
            images_dir: the folder that `file_name` is relative to.
            skip_invalid: leave invalid entries out and list them in `problems`, instead of raising.

        Raises:
            DatasetError: an entry is invalid and `skip_invalid` is off, or the file as a whole cannot be used.
        """
        file = Path(annotation_file)
        return cls.from_document(read_document(file, Path(images_dir)), file, skip_invalid=skip_invalid)

    @classmethod
    def from_document(cls, document: Document, annotation_file: Path, *, skip_invalid: bool = False) -> CocoIndex:
        """Check a document of any format; see `load`."""
        reader, totals = CocoReader(document), document.totals
        categories = reader.categories()
        images = reader.images()
        annotations = reader.annotations()
        if reader.problems and not skip_invalid:
            # Skipping must leave something of what there is.
            kept = categories and images and (annotations or not document.annotations)
            advice = " or pass --skip-invalid" if kept else ""
            raise DatasetError("\n".join(describe(document.name, reader.problems, totals, advice=advice)))
        for collection, valid in (("categories", categories), ("images", images)):
            if not valid:
                lines = describe(document.name, reader.problems, totals, advice=None)
                raise DatasetError("\n".join([f"{document.name}: has no valid {collection}.", *lines]))
        arrays = _annotation_arrays(annotations, np.array([image["id"] for image in images], dtype=np.int64))
        return cls(
            annotation_file=annotation_file,
            name=document.name,
            images_dir=document.images_dir,
            categories=Categories.from_json(categories),
            file_names=tuple(image["file_name"] for image in images),
            sizes_wh=np.array([(image["width"], image["height"]) for image in images], dtype=np.int64),
            problems=tuple(reader.problems),
            totals=totals,
            named=document.named,
            notes=tuple(document.notes),
            **arrays,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, positions: Sequence[int]) -> CocoIndex:
        """Return an index of the images at some positions, in their order."""
        counts = np.diff(self.first_annotation)
        rows = [np.arange(self.first_annotation[i], self.first_annotation[i + 1]) for i in positions]
        annotations = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
        chosen = np.array(positions, dtype=np.int64)
        return replace(
            self,
            image_ids=self.image_ids[chosen],
            file_names=tuple(self.file_names[i] for i in positions),
            sizes_wh=self.sizes_wh[chosen],
            first_annotation=np.concatenate([[0], np.cumsum(counts[chosen])]),
            boxes_xywh=self.boxes_xywh[annotations],
            category_ids=self.category_ids[annotations],
            areas=self.areas[annotations],
            crowds=self.crowds[annotations],
        )

    def image_path(self, position: int) -> Path:
        """Return the path of the image at a position of the index."""
        return self.images_dir / self.file_names[position]

    def training_boxes(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes to train on: without crowds, clipped to the image, none without extent.

        Returns:
            boxes_xyxy float32 [T, 4], pixels; category ids int64 [T].
        """
        here = slice(self.first_annotation[position], self.first_annotation[position + 1])
        boxes = self.boxes_xywh[here].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        width, height = self.sizes_wh[position]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        keep = ~self.crowds[here] & (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[keep], self.category_ids[here][keep]

    def ground_truth(self) -> dict[str, Any]:
        """Return the valid entries as a COCO document for the evaluator, with crowds and boxes without extent.

        Annotations are renumbered from 1: evaluators read a match with annotation 0 as no match.
        """
        images = [
            {"id": int(image_id), "file_name": name, "width": int(width), "height": int(height)}
            for image_id, name, (width, height) in zip(self.image_ids, self.file_names, self.sizes_wh, strict=True)
        ]
        columns = (
            np.repeat(self.image_ids, np.diff(self.first_annotation)).tolist(),
            self.category_ids.tolist(),
            self.boxes_xywh.tolist(),
            self.areas.tolist(),
            self.crowds.astype(int).tolist(),
        )
        keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
        annotations = [
            {"id": k, **dict(zip(keys, row, strict=True))} for k, row in enumerate(zip(*columns, strict=True), start=1)
        ]
        return {"info": {}, "images": images, "annotations": annotations, "categories": self.categories.to_json()}

    def describe_problems(self) -> list[str]:
        """Return a line for each kind of entry that was skipped."""
        return describe(self.name, self.problems, self.totals, advice=None)


def _annotation_arrays(annotations: list[dict[str, Any]], image_ids: np.ndarray) -> dict[str, np.ndarray]:
    owners = np.array([annotation["image_id"] for annotation in annotations], dtype=np.int64)
    order = np.argsort(owners, kind="stable")
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    areas = [a["area"] if "area" in a else a["bbox"][2] * a["bbox"][3] for a in annotations]
    counts_before = np.searchsorted(owners[order], image_ids)
    return {
        "image_ids": image_ids,
        "first_annotation": np.append(counts_before, len(annotations)),
        "boxes_xywh": boxes[order],
        "category_ids": np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64)[order],
        "areas": np.array(areas, dtype=np.float64)[order],
        "crowds": np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)[order],
    }
