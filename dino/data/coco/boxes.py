"""Sort boxes by image with little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# 57 bytes each, four times while they are sorted.
_SORTED_AT_A_TIME = 1 << 20
_READ_AT_A_TIME = 1 << 18


@dataclass(frozen=True, eq=False)
class Boxes:
    """Some boxes."""

    images: np.ndarray  # [A] int64, position of the image
    category_ids: np.ndarray  # [A] int64
    boxes_xywh: np.ndarray  # [A, 4] float64
    areas: np.ndarray  # [A] float64
    crowds: np.ndarray  # [A] bool

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Boxes:
        """Return the boxes of some rows."""
        return Boxes(*(getattr(self, name)[rows] for name in _COLUMNS))


_COLUMNS: dict[str, tuple[type, int]] = {
    "images": (np.int64, 1),
    "category_ids": (np.int64, 1),
    "boxes_xywh": (np.float64, 4),
    "areas": (np.float64, 1),
    "crowds": (np.bool_, 1),
}


class BoxStore:
    """Boxes in the order in which they come, in memory or in the files of a folder.

    Args:
        folder: a folder for temporary files; None: memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._parts: list[Boxes] = []
        self._files = {name: (folder / f"{name}.unsorted").open("w+b") for name in _COLUMNS} if folder else {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, boxes: Boxes) -> None:
        """Add boxes behind the others."""
        self._count += len(boxes)
        if self._folder is None:
            self._parts.append(boxes)
        for name, file in self._files.items():
            getattr(boxes, name).tofile(file)

    def clear(self) -> None:
        """Forget all boxes."""
        self._count = 0
        self._parts.clear()
        for file in self._files.values():
            file.seek(0)
            file.truncate()

    def close(self) -> None:
        """Delete the temporary files."""
        for name, file in self._files.items():
            file.close()
            (self._folder / f"{name}.unsorted").unlink()  # pyright: ignore[reportOptionalOperand]

    def boxes_per_image(self, images: int) -> np.ndarray:
        """Return the number of boxes of each image, int64 [images]."""
        counts = np.zeros(images, dtype=np.int64)
        for part in self._read():
            np.add.at(counts, part.images, 1)
        return counts

    def by_image(self, counts: np.ndarray) -> Iterator[Boxes]:
        """Yield all boxes sorted by image, those of an image in their order, a million at a time.

        Args:
            counts: what `boxes_per_image` returned.
        """
        ends = np.cumsum(counts)
        first = 0
        while first < len(counts):
            before = int(ends[first - 1]) if first else 0
            # At least one image, however many boxes it has.
            last = max(first + 1, int(np.searchsorted(ends, before + _SORTED_AT_A_TIME, side="right")))
            parts = [part.take(np.flatnonzero((part.images >= first) & (part.images < last))) for part in self._read()]
            if parts:
                together = Boxes(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))
                yield together.take(np.argsort(together.images, kind="stable"))
            first = last

    def _read(self) -> Iterator[Boxes]:
        yield from self._parts
        for file in self._files.values():
            file.flush()
        for start in range(0, self._count if self._files else 0, _READ_AT_A_TIME):
            rows = min(_READ_AT_A_TIME, self._count - start)
            yield Boxes(*(self._map(name, start, rows) for name in _COLUMNS))

    def _map(self, name: str, start: int, rows: int) -> np.ndarray:
        dtype, width = _COLUMNS[name]
        shape = (rows,) if width == 1 else (rows, width)
        offset = start * width * np.dtype(dtype).itemsize
        return np.memmap(self._files[name], dtype, "r", offset, shape)
