"""Find annotation files that hold a whole split: COCO JSON, or a CSV of boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dino.data.coco.problems import DatasetError
from dino.data.split import Layout, Split, files_in, folders_in, relative
from dino.data.split_names import SPLITS, split_of

_USUAL = ("_annotations", "instances")


def find_layout(
    root: Path,
    format_name: str,
    suffixes: tuple[str, ...],
    holds_boxes: Callable[[Path], bool],
    make_split: Callable[[Path, Path, str | None], Split],
) -> Layout | None:
    """Return the splits below a folder, or None if it has no file of the format.

    A file is in the folder of its split, or in the folder itself or `annotations/` and named after its split. A single
    file with another name is the training split.

    Args:
        root: the folder, or one file.
        format_name: the format's name for messages.
        suffixes: how the files end.
        holds_boxes: whether a file is of the format.
        make_split: makes a split of a file, the folder and the split's name.

    Raises:
        DatasetError: a split is in two places.
    """
    if root.is_file():
        if root.suffix.lower() not in suffixes:
            return None
        folder = root.parent.parent if root.parent.name.lower() == "annotations" else root.parent
        return Layout(folder, make_split(root, folder, split_of(root.stem)), format=format_name, unnamed=True)
    found: dict[str | None, list[Path]] = {}
    for folder in folders_in(root):
        name = split_of(folder.name)
        if name is not None:
            places = (folder, *(inner for inner in folders_in(folder) if inner.name.lower() == "annotations"))
            found.setdefault(name, []).extend(f for place in places for f in _likely(place, suffixes, holds_boxes))
    for folder in (root, *(folder for folder in folders_in(root) if folder.name.lower() == "annotations")):
        by_split: dict[str | None, list[Path]] = {}
        for file in _likely(folder, suffixes, holds_boxes, usual=False):
            by_split.setdefault(split_of(file.stem), []).append(file)
        for name, files in by_split.items():
            found.setdefault(name, []).extend(_usual(files))
    unnamed = found.pop(None, [])
    found = {name: files for name, files in found.items() if files}
    only = not found and bool(unnamed)
    if unnamed and "train" not in found:
        found["train"] = unnamed
    if not found:
        return None
    for name, files in found.items():
        if len(files) > 1:
            names = " and ".join(relative(file, root) for file in files[:5])
            if only:
                raise DatasetError(f"{root}: has {names}. Pass one as --data, for example {files[0]}.")
            raise DatasetError(f"{root}: has more than one {name} split, {names}. Keep one.")
    splits = {name: make_split(found[name][0], root, None if only else name) for name in SPLITS if name in found}
    return Layout(root, *(splits.get(name) for name in SPLITS), format=format_name, unnamed=only)


def _likely(
    folder: Path, suffixes: tuple[str, ...], holds_boxes: Callable[[Path], bool], *, usual: bool = True
) -> list[Path]:
    # A file with a usual name is meant, also if it is damaged.
    files = [file for file in files_in(folder, *suffixes) if file.stem.startswith(_USUAL) or holds_boxes(file)]
    return _usual(files) if usual else files


def _usual(files: list[Path]) -> list[Path]:
    """Return the files with usual names if there are any: COCO's folder also has those of keypoints."""
    return [file for file in files if file.stem.startswith(_USUAL)] or files
