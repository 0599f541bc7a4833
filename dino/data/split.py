"""A split of a data set: where it is, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dino.data.coco.document import Document, read_document
from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError
from dino.data.split_names import SPLITS


@dataclass(frozen=True)
class Split:
    """One split of a data set. Nothing is read before `load`."""

    images: Path
    """The folder that file names are relative to."""
    annotations: Path
    """The COCO file, or the file or folder with the boxes in another format."""
    root: Path | None = field(default=None, compare=False)
    """The folder of the data, which messages leave out."""
    read: Callable[[], Document] | None = field(default=None, compare=False, repr=False)
    """Reads another format."""
    choose: Callable[[CocoIndex], CocoIndex] | None = field(default=None, compare=False, repr=False)
    """Takes a part of the images."""

    @property
    def name(self) -> str:
        """Return the path of the annotations relative to the folder of the data."""
        return relative(self.annotations, self.root)

    def load(self, *, skip_invalid: bool = False) -> CocoIndex:
        """Read and check the split; see `CocoIndex.load`."""
        name = self.name if self.root is not None else None
        document = self.read() if self.read is not None else read_document(self.annotations, self.images, name)
        index = CocoIndex.from_document(document, self.annotations, skip_invalid=skip_invalid)
        return index if self.choose is None else self.choose(index)


@dataclass(frozen=True)
class Layout:
    """The splits of a data set."""

    root: Path
    train: Split | None
    valid: Split | None = None
    test: Split | None = None
    format: str = "COCO JSON"
    """The format of the annotations."""
    unnamed: bool = False
    """Whether the only split, here `train`, has no name in the data."""

    @property
    def splits(self) -> dict[str, Split]:
        """Return the existing splits by name."""
        found = {name: getattr(self, name) for name in SPLITS}
        return {name: split for name, split in found.items() if split is not None}

    @property
    def sources(self) -> str:
        """Return the files or folders of the annotations as text."""
        return ", ".join(dict.fromkeys(split.name for split in self.splits.values()))

    def require(self, name: str, advice: str = "") -> Split:
        """Return the split "train", "valid" or "test".

        Args:
            name: the split.
            advice: what to do without it, at the end of the error.

        Raises:
            DatasetError: the data do not have it.
        """
        split: Split | None = getattr(self, name)
        if split is None:
            has = " and ".join(f"{found} ({one.name})" for found, one in self.splits.items())
            raise DatasetError(f"{self.root}: has no {name} split, only {has}.{advice and f' {advice}'}")
        return split


def relative(path: Path, root: Path | None) -> str:
    """Return a path as messages name it: relative to the folder of the data where it is inside."""
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else str(path)


def folders_in(root: Path) -> Iterator[Path]:
    """Yield the folders directly in a folder, sorted by name; hidden ones are left out."""
    yield from sorted(path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir())


def files_in(root: Path, *suffixes: str) -> list[Path]:
    """Return the files directly in a folder whose names end in one of the suffixes, in any case, sorted by name."""
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def text_of(path: Path, name: str) -> str:
    """Return the text of a file in UTF-8, without the mark that some editors put before it.

    Raises:
        DatasetError: the file cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name}: is not text in UTF-8: byte {error.start} cannot be read.") from error
