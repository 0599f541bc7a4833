"""The obvious reading of fields that are not written as the COCO format states."""

from __future__ import annotations

import re
from typing import Any

_WHOLE = {
    "images": ("id", "width", "height"),
    "annotations": ("image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}
_OPTIONAL = {"images": ("width", "height"), "annotations": ("iscrowd", "area"), "categories": ()}
_DIGITS = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")
_DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*")


def obvious_reading(collection: str, entry: Any) -> Any:
    """Return an entry with 96.0 and "96" as 96, and without null fields that may be missing.

    Values without an obvious reading stay as they are.
    """
    if type(entry) is not dict:
        return entry
    read = {key: value for key, value in entry.items() if value is not None or key not in _OPTIONAL[collection]}
    for key in _WHOLE[collection]:
        if key in read:
            read[key] = whole(read[key])
    if collection == "categories" and type(read.get("name")) is int:
        read["name"] = str(read["name"])
    if "area" in read and collection == "annotations":
        read["area"] = _number(read["area"])
    box = read.get("bbox")
    if isinstance(box, list):
        read["bbox"] = [_number(value) for value in box]
    return read


def whole(value: Any) -> Any:
    """Return a whole number written as decimal number or as text as an int; anything else as it is."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and _DIGITS.fullmatch(value):
        return int(value)
    return value


def _number(value: Any) -> Any:
    return float(value) if type(value) is str and _DECIMAL.fullmatch(value) else value
