"""Pascal VOC XML: a file of boxes for each image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from dino.data.coco.document import Document
from dino.data.coco.lenient import whole
from dino.data.formats.pictures import Builder, Pictures, image_folders
from dino.data.split import Layout, Split, files_in, folders_in, relative, text_of
from dino.data.split_names import SPLITS, split_of

NAME = "Pascal VOC XML"
_LISTS = {"train": ("train", "trainval"), "valid": ("val", "valid"), "test": ("test",)}


def find(root: Path) -> Layout | None:
    """Return the splits of a folder with VOC's XML files, or None.

    The files are in `Annotations/`, in splits by the lists of `ImageSets/Main/` if there are any; or in a folder for
    each split; or beside the pictures.
    """
    if not root.is_dir():
        return None
    found: dict[str, Split] = {}
    for folder in folders_in(root):
        name = split_of(folder.name)
        place = next((place for place in (folder, *_annotations(folder)) if _has_boxes(place)), None)
        if name is not None and place is not None:
            found.setdefault(name, _split(place, root, name, None))
    if found:
        return Layout(root, *(found.get(name) for name in SPLITS), format=NAME)
    place = next((place for place in (*_annotations(root), root) if _has_boxes(place)), None)
    if place is None:
        return None
    inner = [folder for folder in folders_in(place) if split_of(folder.name) is not None and _has_boxes(folder)]
    found = {split_of(f.name) or "": _split(f, root, split_of(f.name), None) for f in inner}
    lists = root / "ImageSets" / "Main"
    for name, stems in _LISTS.items():
        file = next((lists / f"{stem}.txt" for stem in stems if (lists / f"{stem}.txt").is_file()), None)
        if file is not None:
            found[name] = _split(place, root, None, file)
    if found:
        return Layout(root, *(found.get(name) for name in SPLITS), format=NAME)
    return Layout(root, _split(place, root, None, None), format=NAME, unnamed=True)


def _annotations(root: Path) -> list[Path]:
    return [folder for folder in folders_in(root) if folder.name.lower() in ("annotations", "xml", "xmls")]


def _has_boxes(folder: Path) -> bool:
    """Return whether a folder, or a folder of a split in it, has a VOC file."""
    for place in (folder, *(inner for inner in folders_in(folder) if split_of(inner.name) is not None)):
        for file in files_in(place, ".xml")[:1]:
            with file.open("rb") as opened:
                return b"<annotation" in opened.read(4096)
    return False


def _split(folder: Path, root: Path, name: str | None, listed: Path | None) -> Split:
    return Split(folder, listed or folder, root, lambda: _read(folder, root, name, listed))


def _read(folder: Path, root: Path, split: str | None, listed: Path | None) -> Document:
    builder = Builder(relative(listed or folder, root), root)
    folders = image_folders(folder / "_", root, split)
    usual = [place for place in folders if place.name.lower() in ("jpegimages", "images")]
    pictures = Pictures([*usual, *folders], split)
    files = files_in(folder, ".xml") if listed is None else _listed(listed, folder, builder)
    difficult = sum(_read_file(file, pictures, builder) for file in files)
    if difficult:
        objects = "1 object is" if difficult == 1 else f"{difficult} objects are"
        builder.notes.append(f"{builder.name}: {objects} marked difficult and ignored, like crowds in COCO")
    return builder.document()


def _listed(file: Path, folder: Path, builder: Builder) -> Iterable[Path]:
    """Return the XML files of the names in a list; a name may be followed by a flag."""
    known = {xml.stem: xml for xml in files_in(folder, ".xml")}
    for number, line in enumerate(text_of(file, builder.name).splitlines(), start=1):
        name = line.strip()
        found = known.get(name) or known.get((name.split() or [""])[0]) or known.get(Path(name).stem)
        if found is not None:
            yield found
        elif name:
            what = f"{name!r} has no file in {relative(folder, builder.root)}"
            builder.problem("images", "no annotations", file, f"line {number}", what)


def _read_file(file: Path, pictures: Pictures, builder: Builder) -> int:
    """Add the image and the boxes of a file; return the number of difficult objects."""
    try:
        # Bytes, since the file states its encoding; Python's parser expands no entities from outside the file.
        tree = ElementTree.fromstring(file.read_bytes().lstrip())
    except (OSError, ElementTree.ParseError, ValueError) as error:
        builder.problem("images", "not XML", file, "", f"cannot be read: {error}")
        return 0
    named = _text(tree, "filename") or _text(tree, "path")
    picture = (pictures.find(named) if named else None) or pictures.find(file.stem)
    if picture is None:
        builder.problem("images", "missing file", file, "", f"its image {named or file.stem!r} is missing")
        return 0
    size = [_whole_number(_text(tree, f"size/{key}")) for key in ("width", "height")]
    builder.image(picture, file, size=(size[0], size[1]) if min(size) > 0 else None)
    # VOC's own files count pixels from 1 and include the last one; other tools write the edges of the box.
    offset = 1 if "VOC20" in _text(tree, "source/database") else 0
    count = 0
    for number, thing in enumerate(tree.iter("object"), start=1):
        where, name = f"object {number}", _text(thing, "name")
        texts = [_text(thing, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(text) for text in texts)
        except ValueError:
            builder.problem("annotations", "not numbers", file, where, f"the box {texts} is not four numbers")
            continue
        if not name:
            builder.problem("annotations", "no class", file, where, "the object has no name")
            continue
        difficult = _text(thing, "difficult").lower() in ("1", "true")
        count += difficult
        x0, y0 = x0 - offset, y0 - offset
        builder.box(picture, name, [x0, y0, x1 - x0, y1 - y0], file, where, crowd=difficult)
    return count


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _whole_number(text: str) -> int:
    value = whole(text)
    return value if type(value) is int else 0
