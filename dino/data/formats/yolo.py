"""YOLO's text files: a file of rows `class x y width height` in fractions of the image for each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from dino.data.coco.document import Document
from dino.data.coco.files import is_picture
from dino.data.coco.lenient import whole
from dino.data.coco.problems import DatasetError
from dino.data.formats import yolo_yaml
from dino.data.formats.pictures import Builder, Pictures
from dino.data.split import Layout, Split, files_in, folders_in, relative, text_of
from dino.data.split_names import SPLITS, split_of

NAME = "YOLO txt"
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.names")
# Rows in pixels have larger numbers, and boxes that reach over the edge hardly do.
_LARGEST_FRACTION = 2.0


def find(root: Path) -> Layout | None:
    """Return the splits of a folder, or of a `data.yaml`, in YOLO's format, or None.

    Without a `data.yaml`: `images/` and `labels/`, each with a folder for each split or none; or a folder for each
    split with `images/` and `labels/`, or with the text files beside the pictures.
    """
    described = yolo_yaml.find(root)
    if described is not None:
        file, names, entries = described
        splits = {
            name: Split(
                file.parent, file, file.parent, lambda name=name: _read(file.parent, file, entries[name], names, name)
            )
            for name in SPLITS
            if name in entries
        }
        return Layout(file.parent, *(splits.get(name) for name in SPLITS), format=NAME)
    return _find_folders(root) if root.is_dir() else None


def _find_folders(root: Path) -> Layout | None:
    places: dict[str | None, tuple[Path, Path]] = {}  # pictures and labels
    pictures, labels = (_folder(root, name) for name in ("images", "labels"))
    if pictures is not None and labels is not None:
        for folder in folders_in(pictures):
            name = split_of(folder.name)
            if name is not None and (labels / folder.name).is_dir():
                places.setdefault(name, (folder, labels / folder.name))
        if not places and _has_labels(labels):
            places[None] = (pictures, labels)
    for folder in folders_in(root) if not places else ():
        name, inner = split_of(folder.name), [_folder(folder, name) for name in ("images", "labels")]
        if name is not None and inner[0] is not None and inner[1] is not None and _has_labels(inner[1]):
            places.setdefault(name, (inner[0], inner[1]))
        elif name is not None and _class_file(folder, root) is not None and _has_labels(folder):
            places.setdefault(name, (folder, folder))
    if not places and _class_file(root) is not None and _has_labels(root):
        places[None] = (root, root)
    if not places:
        return None
    splits = {
        name: Split(place[0], place[1], root, lambda place=place, name=name: _read_folders(root, *place, name))
        for name, place in places.items()
    }
    if None in splits:
        return Layout(root, splits[None], format=NAME, unnamed=True)
    return Layout(root, *(splits.get(name) for name in SPLITS), format=NAME)


def _folder(parent: Path, name: str) -> Path | None:
    return next((folder for folder in folders_in(parent) if folder.name.lower() == name), None)


def _class_file(*folders: Path) -> Path | None:
    files = (folder / name for folder in folders for name in _CLASS_FILES)
    return next((file for file in files if file.is_file()), None)


def _has_labels(folder: Path) -> bool:
    return any(file.name not in _CLASS_FILES for file in files_in(folder, ".txt"))


def _read_folders(root: Path, pictures: Path, labels: Path, split: str | None) -> Document:
    file = _class_file(root, labels, pictures, labels.parent, root / "data")
    names = None
    if file is not None:
        lines = text_of(file, relative(file, root)).splitlines()
        names = {k: line.strip() for k, line in enumerate(lines) if line.strip()}
    return _read(root, labels, [str(pictures)], names, split, labels=labels)


def _read(
    root: Path,
    source: Path,
    entries: list[str],
    names: Mapping[int, str] | None,
    split: str | None,
    *,
    labels: Path | None = None,
) -> Document:
    """Read the boxes of the pictures in `entries`: folders, or files that list pictures.

    Args:
        root: the folder of the data.
        source: the file or folder that messages name.
        names: class names; None: "class 0", ... up to the largest in the rows.
        split: the split's name.
        labels: the folder of the text files; by default it is found from the place of each picture.
    """
    builder = Builder(relative(source, root), root)
    label_files = _LabelFiles()
    for entry in entries:
        place = _resolve(entry, root, split)
        if place is None:
            raise DatasetError(f"{builder.name}: {split or 'images'}: {entry!r} does not exist in {root}.")
        for picture, file, where in _pictures(place, root, split, builder):
            builder.image(picture, file, where)
    if not builder.pictures:
        raise DatasetError(f"{builder.name}: {split or 'images'}: no picture in {', '.join(entries)}.")
    sizes, rows = builder.read_sizes(), []
    for picture in builder.pictures:
        file = label_files.of(picture, labels)
        if file is not None:
            rows += [(picture, file, *row) for row in _rows(file, builder)]
    if not label_files.used:
        example = relative(builder.pictures[0], root)
        raise DatasetError(f"{builder.name}: no picture has a text file of boxes: looked for that of {example}.")
    for file in label_files.unused():
        builder.problem("images", "missing file", file, "", "has boxes, but its image is missing")
    if names is None:
        names = {k: f"class {k}" for k in range(max((row[3] for row in rows), default=0) + 1)}
        builder.notes.append(f"{builder.name}: no class names (classes.txt): they are called class 0, class 1, ...")
    for picture, file, where, category, (x, y, w, h) in rows:
        width, height = sizes.get(picture, (1, 1))
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        builder.box(picture, category, box, file, where)
    return builder.document(names)


def _resolve(entry: str, root: Path, split: str | None) -> Path | None:
    """Return an existing file or folder that an entry means, also one that was written on another machine."""
    text = entry.replace("\\", "/")
    direct = root / text
    if direct.exists():
        return direct
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "..", ".")]
    for k, part in enumerate(parts):
        if (root / Path(*parts[k:])).exists():
            return root / Path(*parts[k:])
        if split_of(part) is not None:
            return None
    return None


def _pictures(place: Path, root: Path, split: str | None, builder: Builder) -> Iterator[tuple[Path, Path, str]]:
    """Yield pictures with the file and line that names them."""
    if place.is_dir():
        yield from ((path, path, "") for path in sorted(place.rglob("*")) if is_picture(path) and path.is_file())
        return
    known = Pictures([root, place.parent], split)
    for number, line in enumerate(text_of(place, relative(place, root)).splitlines(), start=1):
        name = line.strip()
        picture = known.find(name) if name else None
        if picture is not None:
            yield picture, place, f"line {number}"
        elif name:
            builder.problem("images", "missing file", place, f"line {number}", f"the image {name!r} is missing")


class _LabelFiles:
    """Finds the text file of each picture, and remembers which are used."""

    def __init__(self) -> None:
        self.used: set[Path] = set()
        self._folders: dict[Path, dict[str, Path]] = {}

    def of(self, picture: Path, labels: Path | None) -> Path | None:
        """Return the file: in `labels`, or where `labels` replaces the last `images` of the path, or beside it."""
        for folder in [labels] if labels is not None else self._places(picture.parent):
            if folder not in self._folders:
                self._folders[folder] = {f.stem: f for f in files_in(folder, ".txt") if f.name not in _CLASS_FILES}
            file = self._folders[folder].get(picture.stem)
            if file is not None:
                self.used.add(file)
                return file
        return None

    @staticmethod
    def _places(folder: Path) -> Iterator[Path]:
        parts = folder.parts
        last = next((k for k in range(len(parts) - 1, 0, -1) if parts[k].lower() == "images"), None)
        if last is not None:
            yield Path(*parts[:last], "labels", *parts[last + 1 :])
        yield folder

    def unused(self) -> list[Path]:
        """Return the files without a picture, in folders of text files alone."""
        files = [file for folder in self._folders.values() for file in folder.values()]
        return sorted(file for file in files if file not in self.used and "labels" in file.parent.parts)


def _rows(file: Path, builder: Builder) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    """Yield (place, class, (x, y, width, height) in fractions) of each valid row; a polygon becomes its box."""
    try:
        text = text_of(file, file.name)
    except DatasetError as error:
        builder.problem("images", "unreadable boxes", file, "", str(error).rstrip("."))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        where, cells = f"line {number}", line.split()
        if not cells:
            continue
        category = whole(float(cells[0])) if cells[0].endswith(".0") and cells[0][:-2].isdigit() else whole(cells[0])
        try:
            values = [float(cell) for cell in cells[1:]]
        except ValueError:
            values = None
        if values is None or type(category) is not int:
            builder.problem("annotations", "not numbers", file, where, f"must be numbers, got {line.strip()[:80]!r}")
        elif len(values) != 4 and (len(values) < 6 or len(values) % 2):
            what = f"must be a class and 4 numbers, or a polygon of 3 points or more, got {len(cells)} numbers"
            builder.problem("annotations", "not 5 numbers", file, where, what)
        elif any(abs(value) > _LARGEST_FRACTION for value in values):
            what = f"{line.strip()[:80]!r} is not in fractions of the image, 0..1"
            builder.problem("annotations", "not fractions", file, where, what)
        else:
            yield where, category, tuple(values) if len(values) == 4 else _box_of(values)


def _box_of(polygon: list[float]) -> tuple[float, ...]:
    xs, ys = polygon[::2], polygon[1::2]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
