"""Check single entries of a COCO file. Each check returns (kind, what is wrong) or None."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from typing import Any

from dino.data.coco.absolute import is_absolute
from dino.data.coco.problems import shown

Finding = tuple[str, str]
_LARGEST_ID = 2**63 - 1
# Pixels. No image is larger, and 32-bit floats are too coarse beyond.
LARGEST_NUMBER = 1e9


def check_id(entry: Mapping[str, Any], key: str) -> Finding | None:
    """Check that entry[key] is a 64-bit integer."""
    if key not in entry:
        return f"no {key}", f"has no {key!r}"
    value = entry[key]
    if type(value) is not int:  # True is an int to isinstance, and 12.0 would compare equal to 12
        return f"{key} not an integer", f"{key} {shown(value)} is not an integer but {_type_name(value)}"
    if abs(value) > _LARGEST_ID:
        return f"{key} too large", f"{key} {shown(value)} does not fit into 64 bits"
    return None


def check_category(entry: Any, seen: Container[int]) -> Finding | None:
    """Check a category: a new id, and a name."""
    finding = _check_entry(entry, seen)
    if finding is not None:
        return finding
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        return "bad name", f"name must be non-empty text, got {shown(name)}"
    return None


def check_image(entry: Any, seen: Container[int]) -> Finding | None:
    """Check an image: a new id, a file name, which does not leave the folder, and the size if there is one."""
    finding = _check_entry(entry, seen)
    if finding is not None:
        return finding
    return check_size(entry) or _check_file_name(entry)


def check_size(entry: Mapping[str, Any]) -> Finding | None:
    """Check width and height of an image, which may be missing."""
    for key in ("width", "height"):
        if key not in entry:
            continue  # the file has it
        if type(entry[key]) is not int:
            return f"{key} not an integer", f"{key} must be a whole number of pixels, got {shown(entry[key])}"
        if not 0 < entry[key] < LARGEST_NUMBER:
            return f"bad {key}", f"{key} must be at least 1 pixel, got {shown(entry[key])}"
    return None


def check_annotation(
    entry: Any,
    size_of: Callable[[int], tuple[int, int] | None],
    dropped_images: Container[int],
    categories: Container[int],
) -> Finding | None:
    """Check an annotation: an image, a category, a box that overlaps the image, `iscrowd` and `area`.

    Its id is not used: annotations are numbered again.

    Args:
        entry: the annotation.
        size_of: returns width and height of a valid image by its id, or None.
        dropped_images: ids of images with problems.
        categories: ids of valid categories.
    """
    if type(entry) is not dict:
        return "not an object", f"must be an object, got {shown(entry)}"
    finding = check_id(entry, "image_id") or check_id(entry, "category_id")
    if finding is not None:
        return finding
    size = size_of(entry["image_id"])
    if size is None:
        if entry["image_id"] in dropped_images:
            return "invalid image", f"its image {entry['image_id']} is invalid"
        return "unknown image_id", f"image_id {entry['image_id']} is not among the images"
    if entry["category_id"] not in categories:
        return "unknown category_id", f"category_id {entry['category_id']} is not among the categories"
    finding = _check_box(entry.get("bbox"), size) if "bbox" in entry else ("no bbox", "has no 'bbox'")
    if finding is not None:
        return finding
    crowd = entry.get("iscrowd", 0)
    if crowd != 0 and crowd != 1:
        return "bad iscrowd", f"iscrowd must be 0 or 1, got {shown(crowd)}"
    area = entry.get("area", 0)
    if type(area) not in (int, float) or not 0 <= area <= LARGEST_NUMBER**2:
        return "bad area", f"area must be a finite number of pixels, at least 0, got {shown(area)}"
    return None


def _check_entry(entry: Any, seen: Container[int]) -> Finding | None:
    if type(entry) is not dict:
        return "not an object", f"must be an object, got {shown(entry)}"
    finding = check_id(entry, "id")
    if finding is None and entry["id"] in seen:
        return "duplicate id", f"id {entry['id']} is used more than once"
    return finding


def _check_file_name(entry: Mapping[str, Any]) -> Finding | None:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        return "bad file_name", f"file_name must be non-empty text, got {shown(name)}"
    if ".." not in name or is_absolute(name):  # an absolute one is found by its last parts
        return None
    if os.path.normpath(name.replace("\\", "/")).split("/")[0] == "..":
        return "file_name outside", f"file_name {shown(name)} leaves the images folder"
    return None


def _check_box(box: Any, size_wh: tuple[int, int]) -> Finding | None:
    if type(box) is not list or len(box) != 4:
        return "bbox not 4 numbers", f"bbox must be 4 numbers [x, y, width, height], got {shown(box)}"
    for value in box:
        # One comparison accepts every good number; only the others need closer inspection.
        if type(value) not in (int, float) or not -LARGEST_NUMBER < value < LARGEST_NUMBER:
            return _describe_number(box, value)
    x, y, width, height = box
    if width < 0:
        return "negative width", f"bbox {shown(box)} has negative width"
    if height < 0:
        return "negative height", f"bbox {shown(box)} has negative height"
    # A box without extent is dropped in training wherever it lies, as in the official code.
    if width and height and (x >= size_wh[0] or y >= size_wh[1] or x + width <= 0 or y + height <= 0):
        return "bbox outside", f"bbox {shown(box)} lies outside its image of {size_wh[0]}x{size_wh[1]} pixels"
    return None


def _describe_number(box: list[Any], value: Any) -> Finding:
    if type(value) not in (int, float):
        return "bbox not numbers", f"bbox {shown(box)} holds {shown(value)}, which is {_type_name(value)}, not a number"
    if value != value:
        return "bbox NaN", f"bbox {shown(box)} holds NaN"
    return "bbox too large", f"bbox {shown(box)} holds {shown(value)}, which is infinite or absurdly large"


def _type_name(value: Any) -> str:
    names = {str: "text", bool: "true or false", float: "a decimal number", type(None): "null"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
