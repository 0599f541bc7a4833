"""The images and boxes of a split as columns, in memory or in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

_ROWS_AT_A_TIME = 1 << 18


class Names(Sequence[str]):
    """Many texts in one array: Python's own would take several times the memory, and a copy in every process."""

    def __init__(self, letters: np.ndarray, ends: np.ndarray) -> None:
        self.letters = letters  # [L] uint8, UTF-8
        self.ends = ends  # [N] int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        # Names of files may hold bytes that are not text, which Python keeps as surrogates.
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Names: ...
    def __getitem__(self, position: int | slice) -> str | Names:
        if isinstance(position, slice):
            return self.take(np.arange(len(self))[position])
        position = range(len(self))[position]
        start = int(self.ends[position - 1]) if position else 0
        return self.letters[start : int(self.ends[position])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self.letters[start:end].tobytes().decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{', ...' if len(self) > 3 else ''})"

    def take(self, positions: np.ndarray) -> Names:
        """Return the texts at some positions."""
        return Names.of(self[position] for position in positions.tolist())


@dataclass(frozen=True, eq=False)
class Columns:
    """The images of a split, sorted by id, and their boxes, sorted by image."""

    image_ids: np.ndarray  # [N] int64
    sizes_wh: np.ndarray  # [N, 2] int64, pixels
    file_names: Names  # N, relative to the folder of the images
    first_box: np.ndarray  # [N] int64: image i has the boxes first_box[i] to first_box[i] + num_boxes[i]
    num_boxes: np.ndarray  # [N] int64
    boxes_xywh: np.ndarray  # [A, 4] float64, as in the file
    classes: np.ndarray  # [A] unsigned integer, the position of the category in class_ids
    areas: np.ndarray  # [A] float64, pixels; width * height if the file has none
    crowds: np.ndarray  # [A] bool
    class_ids: np.ndarray  # [K] int64, sorted
    folder: Path | None = None
    """Where the columns are stored, if they are: all processes share one copy, since the files are mapped."""
    positions: np.ndarray | None = None  # [N] int64, of the images in the folder; None: all

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, positions: np.ndarray) -> Columns:
        """Return the images at some positions, in their order. The columns of the boxes are the same arrays."""
        per_image = ("image_ids", "sizes_wh", "first_box", "num_boxes")
        chosen: dict[str, Any] = {name: getattr(self, name)[positions] for name in per_image}
        if self.folder is not None:
            chosen["positions"] = positions if self.positions is None else self.positions[positions]
        return dataclasses.replace(self, file_names=self.file_names.take(positions), **chosen)

    def boxes_of(self, position: int) -> slice:
        """Return the rows of the boxes of an image."""
        first = int(self.first_box[position])
        return slice(first, first + int(self.num_boxes[position]))

    def rows(self) -> Iterator[slice | np.ndarray]:
        """Yield the rows of the boxes of all images in turn, some hundred thousand at a time."""
        before = np.concatenate([[0], np.cumsum(self.num_boxes)])
        shift = self.first_box - before[:-1]
        for start in range(0, int(before[-1]), _ROWS_AT_A_TIME):
            end = min(start + _ROWS_AT_A_TIME, int(before[-1]))
            if shift.any():
                places = np.arange(start, end)
                yield places + shift[np.searchsorted(before, places, side="right") - 1]
            else:
                yield slice(start, end)

    @cached_property
    def boxes_per_class(self) -> np.ndarray:
        """Return the number of boxes of each class, and of crowds among them, int64 [2, K]."""
        counts = np.zeros((2, len(self.class_ids)), dtype=np.int64)
        for rows in self.rows():
            classes = self.classes[rows]
            counts[0] += np.bincount(classes, minlength=counts.shape[1])
            counts[1] += np.bincount(classes[self.crowds[rows]], minlength=counts.shape[1])
        return counts

    def save_images(self, folder: Path) -> None:
        """Write all columns but those of the boxes into a folder."""
        for name in _OF_IMAGES:
            np.save(folder / f"{name}.npy", getattr(self, name))
        np.save(folder / "letters.npy", self.file_names.letters)
        np.save(folder / "ends.npy", self.file_names.ends)

    @classmethod
    def open(cls, folder: Path) -> Columns:
        """Return the columns that are stored in a folder.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged.
        """
        names = Names(_mapped(folder, "letters"), _mapped(folder, "ends"))
        columns = {name: _mapped(folder, name) for name in (*_OF_IMAGES, *_OF_BOXES)}
        return cls(file_names=names, folder=folder, **columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Give another process the folder instead of the content."""
        if self.folder is not None:
            return _open, (self.folder, self.positions)
        return Columns, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


_OF_IMAGES = ("image_ids", "sizes_wh", "first_box", "num_boxes", "class_ids")
_OF_BOXES = ("boxes_xywh", "classes", "areas", "crowds")


def _open(folder: Path, positions: np.ndarray | None) -> Columns:
    columns = Columns.open(folder)
    return columns if positions is None else columns.select(positions)


def _mapped(folder: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


class Output:
    """A column that is written in parts: into memory, or into a NumPy file of a folder."""

    def __init__(self, name: str, dtype: np.dtype, shape: tuple[int, ...], folder: Path | None) -> None:
        self._parts = [np.zeros((0, *shape[1:]), dtype)]
        self._file = None
        if folder is not None:
            self._file = (folder / f"{name}.npy").open("wb")
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, part: np.ndarray) -> None:
        """Add rows."""
        part = part.astype(self._parts[0].dtype, copy=False)
        if self._file is None:
            self._parts.append(part)
        else:
            part.tofile(self._file)  # not through a map: on a full disk, that would end the process

    def finish(self) -> np.ndarray:
        """Return the rows that are in memory: all, or none if they are in a file."""
        if self._file is not None:
            self._file.close()
        return np.concatenate(self._parts)
