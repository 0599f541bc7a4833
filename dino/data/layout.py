"""Find the images and annotations of each split in a folder of data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino.common.text import shorten
from dino.data.coco.problems import DatasetError

# For each split, (images, annotations) relative to the root. The first three kinds are Roboflow's and COCO's layouts.
_PLACES = {
    "train": (
        ("train", "train/_annotations.coco.json"),
        ("train2017", "annotations/instances_train2017.json"),
        ("train", "annotations/instances_train.json"),
    ),
    "valid": (
        ("valid", "valid/_annotations.coco.json"),
        ("val", "val/_annotations.coco.json"),
        ("val2017", "annotations/instances_val2017.json"),
        ("val", "annotations/instances_val.json"),
    ),
    "test": (
        ("test", "test/_annotations.coco.json"),
        ("test", "annotations/instances_test.json"),
    ),
}


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    images: Path
    """The folder that file names are relative to."""
    annotations: Path
    """The COCO file."""


@dataclass(frozen=True)
class Layout:
    """The splits of a folder."""

    root: Path
    train: Split | None
    valid: Split | None
    test: Split | None

    def require(self, name: str) -> Split:
        """Return the split "train", "valid" or "test".

        Raises:
            DatasetError: the folder does not have it.
        """
        split: Split | None = getattr(self, name)
        if split is None:
            raise DatasetError(_not_found(self.root, [name]))
        return split


def find_splits(root: str | Path) -> Layout:
    """Find the splits below a folder.

    There are two layouts: `train/ valid/ test/`, each with `_annotations.coco.json` beside the images (or `val/`), and
    `annotations/instances_{train,val}2017.json` with `train2017/ val2017/` (also without the year).

    Raises:
        DatasetError: no split was found, or a split is in two places.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: is not a folder.")
    layout = Layout(root, *(_find(root, name) for name in ("train", "valid", "test")))
    if layout.train is None and layout.valid is None and layout.test is None:
        raise DatasetError(_not_found(root, ["train", "valid"]))
    return layout


def _find(root: Path, name: str) -> Split | None:
    found = [
        Split(root / images, root / annotations)
        for images, annotations in _PLACES[name]
        if (root / images).is_dir() and (root / annotations).is_file()
    ]
    if len(found) > 1:
        places = " and ".join(str(split.annotations.relative_to(root)) for split in found)
        raise DatasetError(f"{root}: has more than one {name} split, {places}. Keep one.")
    return found[0] if found else None


def _not_found(root: Path, names: list[str]) -> str:
    expected = "; or ".join(
        f"{annotations} with images in {images}/" for name in names for images, annotations in _PLACES[name]
    )
    entries = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    nested = root / "annotations"
    if nested.is_dir():
        entries += sorted(f"annotations/{path.name}" for path in nested.iterdir())
    found = shorten(entries, 20) or "nothing"
    return f"{root}: no {' or '.join(names)} split. Looked for {expected}. The folder holds {found}."
