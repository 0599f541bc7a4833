"""Count what is in a data set, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dino.common.text import percent, shorten
from dino.data.coco.index import CocoIndex

AREAS = (32**2, 96**2)
"""Pixels of the largest small and of the largest medium box, as in COCO."""
_MOST_CLASSES = 20


def boxes_per_class(indexes: Mapping[str, CocoIndex]) -> list[str]:
    """Return a table of images, images without boxes, and boxes of each class, with a column for each split.

    Crowds do not count. Of more than 20 classes, the ten with most and the ten with fewest boxes are shown.

    Args:
        indexes: the splits by name, at least one; the classes are those of all.
    """
    counts = {split: _counts(index) for split, index in indexes.items()}
    names = {name: None for index in indexes.values() for name in index.categories.titles}
    rows = [(name, [counts[split].get(name, 0) for split in indexes]) for name in names]
    rows.sort(key=lambda row: -row[1][0])
    hidden = len(rows) - _MOST_CLASSES
    half = _MOST_CLASSES // 2
    shown = rows if hidden <= 0 else [*rows[:half], (f"({hidden} more classes)", []), *rows[-half:]]
    table = [
        ("", list(indexes)),
        ("images", [f"{len(index):,}" for index in indexes.values()]),
        ("  without boxes", [f"{_empty(index):,}" for index in indexes.values()]),
        ("boxes", [f"{sum(counts[split].values()):,}" for split in indexes]),
        *((f"  {name}", [f"{count:,}" for count in row]) for name, row in shown),
    ]
    width = min(max(len(name) for name, _ in table), 40)
    lines = [f"{name:<{width}}{''.join(f'{cell:>10}' for cell in cells)}".rstrip() for name, cells in table]
    for split, index in indexes.items():
        none = [name for name in index.categories.titles if not counts[split].get(name)]
        if none and len(none) < len(names):
            lines.append(f"no boxes in {split}: {shorten(none, 10)}")
    return lines


def sizes_and_shapes(index: CocoIndex) -> list[str]:
    """Return lines about the sizes of the images, and the sizes and shapes of the boxes without crowds."""
    widths, heights = index.sizes_wh[:, 0], index.sizes_wh[:, 1]
    lines = [f"images: {_range(widths, heights)} pixels"]
    boxes = flat = 0
    sizes = np.zeros(3, dtype=np.int64)
    shapes = []
    for rows in index.columns.rows():
        real = index.columns.boxes_xywh[rows][~index.columns.crowds[rows], 2:]
        areas = real.prod(1)
        solid = real[areas > 0]
        boxes, flat = boxes + len(real), flat + len(real) - len(solid)
        sizes += np.bincount(np.searchsorted(AREAS, areas, side="right"), minlength=3)
        shapes.append(solid[:, 0] / solid[:, 1])
    if boxes > flat:
        shares = [f"{percent(float(size / boxes))} %" for size in sizes]
        lines.append(f"boxes: {shares[0]} small (below 32x32), {shares[1]} medium, {shares[2]} large (from 96x96)")
        low, middle, high = np.quantile(np.concatenate(shapes), (0.05, 0.5, 0.95))
        lines.append(f"width / height of a box: median {middle:.2f}, 90 % in {low:.2f} to {high:.2f}")
        lines.append(f"boxes of an image: {boxes / len(index):.1f} on average, at most {_boxes_per_image(index).max()}")
    lines += [f"{flat:,} boxes without width or height: not trained on"] if flat else []
    ignored = sum(crowds for _, crowds in index.boxes_per_category.values())
    lines += [f"{ignored:,} crowds or difficult objects: ignored"] if ignored else []
    return lines


def problems_and_notes(indexes: Sequence[CocoIndex]) -> list[str]:
    """Return a line for each kind of entry that was skipped, and for what was understood in a special way."""
    lines = [line for index in indexes for line in (*index.notes, *index.describe_problems())]
    return list(dict.fromkeys(lines))  # two parts of one split have the same


def _counts(index: CocoIndex) -> dict[str, int]:
    """Return the boxes of each class by title, without crowds."""
    names = dict(zip(index.categories.ids, index.categories.titles, strict=True))
    return {names[i]: boxes - crowds for i, (boxes, crowds) in index.boxes_per_category.items() if boxes > crowds}


def _boxes_per_image(index: CocoIndex) -> np.ndarray:
    """Return the number of boxes of each image without crowds, int64 [N]."""
    columns = index.columns
    before = np.concatenate([[0], np.cumsum(~columns.crowds)])
    return before[columns.first_box + columns.num_boxes] - before[columns.first_box]


def _empty(index: CocoIndex) -> int:
    return int((_boxes_per_image(index) == 0).sum())


def _range(widths: np.ndarray, heights: np.ndarray) -> str:
    smallest, largest = np.argmin(widths * heights), np.argmax(widths * heights)
    low, high = (f"{widths[i]}x{heights[i]}" for i in (smallest, largest))
    return low if low == high else f"{low} to {high}"
