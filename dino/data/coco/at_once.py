"""Check thousands of annotations at once, by the rules of `check_annotation`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from dino.data.coco.boxes import Boxes
from dino.data.coco.checks import LARGEST_NUMBER

_NEEDED = itemgetter("image_id", "category_id", "bbox")


@dataclass(frozen=True)
class Images:
    """The valid images, sorted by id."""

    ids: np.ndarray  # [N] int64
    sizes_wh: np.ndarray  # [N, 2] int64
    file_names: list[str]

    def row_of(self, image_id: Any) -> int | None:
        """Return the row of an image; None if there is none with that id."""
        if type(image_id) is not int or not len(self.ids) or not self.ids[0] <= image_id <= self.ids[-1]:
            return None
        row = int(np.searchsorted(self.ids, image_id))
        return row if self.ids[row] == image_id else None

    def size_of(self, image_id: int) -> tuple[int, int] | None:
        """Return width and height of an image; None if there is none with that id."""
        row = self.row_of(image_id)
        return None if row is None else tuple(self.sizes_wh[row].tolist())


def boxes_at_once(entries: list[Any], images: Images, category_ids: set[int] | None) -> Boxes | None:
    """Return the boxes of annotations if all of them are valid and written as the format states, or else None.

    Args:
        entries: the annotations.
        images: the valid images.
        category_ids: the valid categories; None if they are not known yet.
    """
    try:
        image_ids, own_category_ids, boxes = zip(*map(_NEEDED, entries), strict=True) if entries else ((), (), ())
        numbers = list(chain.from_iterable(boxes))
        areas = [entry.get("area") for entry in entries]
        crowds = [entry.get("iscrowd") for entry in entries]
        if (
            {*map(type, image_ids), *map(type, own_category_ids)} - {int}
            or {*map(type, boxes)} - {list}
            or {*map(len, boxes)} - {4}
            or {*map(type, numbers)} - {int, float}
            or {*map(type, areas)} - {int, float, type(None)}
            or {*crowds} - {0, 1, None}
        ):
            return None
        ids = np.array(image_ids, dtype=np.int64)
        classes = np.array(own_category_ids, dtype=np.int64)
        xywh = np.array(numbers, dtype=np.float64).reshape(-1, 4)
        given = np.array([area is not None for area in areas], dtype=np.bool_)
        area = np.array([0 if area is None else area for area in areas], dtype=np.float64)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return None
    rows = np.searchsorted(images.ids, ids)
    if (rows == len(images.ids)).any() or (images.ids[rows] != ids).any():
        return None
    x, y, width, height = xywh.T
    image_width, image_height = images.sizes_wh[rows].T
    outside = (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
    good = (
        (np.abs(xywh) < LARGEST_NUMBER).all()
        and not ((width < 0) | (height < 0) | ((width > 0) & (height > 0) & outside)).any()
        and ((area >= 0) & (area <= LARGEST_NUMBER**2)).all()
        and (category_ids is None or category_ids.issuperset(np.unique(classes).tolist()))
    )
    if not good:
        return None
    crowd = np.array([bool(crowd) for crowd in crowds], dtype=np.bool_)
    return Boxes(rows, classes, xywh, np.where(given, area, width * height), crowd)
