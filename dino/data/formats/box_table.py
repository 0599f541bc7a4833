"""A CSV file with a box in each row."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from dino.data.coco.document import Document
from dino.data.coco.problems import DatasetError
from dino.data.formats.one_file import find_layout
from dino.data.formats.pictures import Builder, Pictures, image_folders
from dino.data.split import Layout, Split, relative, text_of

NAME = "CSV of boxes"
# Names of columns, in lower case and without other characters than letters and digits.
_WORDS = {
    "image": "filename file image imagename imagefile imagepath path filepath img imgname imgpath imageid",
    "x0": "xmin x1 left bboxxmin bboxx1 xtopleft",
    "y0": "ymin y1 top bboxymin bboxy1 ytopleft",
    "x1": "xmax x2 right bboxxmax bboxx2 xbottomright",
    "y1": "ymax y2 bottom bboxymax bboxy2 ybottomright",
    "x": "x bboxx boxx",
    "y": "y bboxy boxy",
    "w": "w bboxw bboxwidth boxw boxwidth width",
    "h": "h bboxh bboxheight boxh boxheight height",
    "class": "class label classname labelname category categoryname name object classid labelid categoryid",
}
_COLUMNS = {column: words.split() for column, words in _WORDS.items()}
_CORNERS, _SIZES = ("x0", "y0", "x1", "y1"), ("x", "y", "w", "h")


def find(root: Path) -> Layout | None:
    """Return the splits of a folder or file with boxes in CSV files, or None."""
    if root.is_file() and root.suffix.lower() in (".csv", ".tsv") and not _is_table(root):
        raise DatasetError(
            f"{root}: has no columns of boxes. Name the columns filename, xmin, ymin, xmax, ymax (or x, y, w, h) and "
            "class, or leave the header out of rows path,x1,y1,x2,y2,class."
        )
    return find_layout(root, NAME, (".csv", ".tsv"), _is_table, _split)


def _split(file: Path, root: Path, split: str | None) -> Split:
    return Split(file.parent, file, root, lambda: _read(file, root, split))


def _is_table(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            lines = opened.read(1 << 16).decode("utf-8-sig", errors="replace").splitlines()
    except OSError:
        return False
    return bool(lines) and _columns(next(csv.reader(lines, delimiter=_delimiter(lines[0])), [])) is not None


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _columns(first: list[str]) -> dict[str, int] | None:
    """Return the position of each column, from the header or, without one, as in RetinaNet's files; None if unknown."""
    names = [re.sub("[^a-z0-9]", "", cell.lower()) for cell in first]
    at = {
        column: next(names.index(name) for name in known if name in names)
        for column, known in _COLUMNS.items()
        if set(known) & set(names)
    }
    for keys in (_CORNERS, _SIZES):  # beside corners, width and height are those of the image
        if all(key in at for key in ("image", *keys, "class")):
            return {key: at[key] for key in ("image", *keys, "class")}
    is_row = len(first) == 6 and (all(map(_is_number, first[1:5])) or not any(first[1:])) and first[0].strip()
    return dict(zip(("image", *_CORNERS, "class"), range(6), strict=True)) if is_row else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(file: Path, root: Path, split: str | None) -> Document:
    name = relative(file, root)
    lines = text_of(file, name).splitlines()
    delimiter = _delimiter(lines[0]) if lines else ","
    rows = [(n, row) for n, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1) if any(row)]
    at = _columns(rows[0][1]) if rows else None
    if at is None:
        raise DatasetError(f"{name}: has no columns of boxes.")
    has_header = not _is_number(rows[0][1][at["w" if "w" in at else "x1"]]) and any(rows[0][1][1:])
    builder, pictures = Builder(name, root), Pictures(image_folders(file, root, split), split)
    boxes = []
    for number, row in rows[1:] if has_header else rows:
        where, row = f"line {number}", [cell.strip() for cell in row]
        if len(row) <= max(at.values()):
            what = f"has {len(row)} columns, at least {max(at.values()) + 1} are needed"
            builder.problem("annotations", "missing columns", file, where, what)
            continue
        picture = pictures.find(row[at["image"]]) if row[at["image"]] else None
        if picture is None:
            what = f"the image {row[at['image']]!r} is missing"
            builder.problem("images", "missing file", file, where, what)
            continue
        builder.image(picture, file, where)
        cells = [row[at[key]] for key in (_CORNERS if "x0" in at else _SIZES)]
        category = row[at["class"]]
        if not any((*cells, category)):
            continue  # an image without boxes
        if not all(map(_is_number, cells)):
            builder.problem("annotations", "not numbers", file, where, f"the box {cells} is not four numbers")
        elif not category:
            builder.problem("annotations", "no class", file, where, "the box has no class")
        else:
            boxes.append((picture, category, [float(cell) for cell in cells], where))
    sizes = builder.read_sizes()
    are_fractions = bool(boxes) and all(-0.1 <= value <= 1.1 for _, _, box, _ in boxes for value in box)
    if are_fractions:
        builder.notes.append(f"{name}: boxes are read as fractions of the image, since all numbers are in 0..1")
    for picture, category, (a, b, c, d), where in boxes:
        width, height = sizes.get(picture, (1, 1)) if are_fractions else (1, 1)
        w, h = (c - a, d - b) if "x0" in at else (c, d)
        builder.box(picture, category, [a * width, b * height, w * width, h * height], file, where)
    return builder.document()
