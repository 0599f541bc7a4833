"""The classes of objects in WebDataset's samples: by id, by name, or both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dino.data.coco.lenient import whole
from dino.data.coco.problems import DatasetError, shown
from dino.data.shards import open_in_shard
from dino.data.split import relative, text_of
from dino.data.tar_listing import listing

CLASS_FILES = ("categories.json", "classes.txt")


@dataclass
class Classes:
    """The name of each class id."""

    names: dict[int, str]
    named: bool = False
    """Whether no object has an id, so that the ids are ours."""
    notes: list[str] = field(default_factory=list)
    """What was understood in a way that a user should know."""

    @classmethod
    def of(cls, objects: Iterable[Any], names: dict[int, str] | None) -> Classes:
        """Return the classes of some objects.

        Args:
            objects: each with `category_id`, `category`, or both.
            names: the names in a file of classes; by default they are those beside the ids, or else "class 7".
        """
        if names is not None:
            return cls(names)
        pairs = [_pair(thing) for thing in objects if type(thing) is dict]
        ids = {i for i, _ in pairs if type(i) is int}
        if not ids:
            found = sorted({name for _, name in pairs if name is not None})
            return cls(dict(enumerate(found, start=1)), named=True)
        beside = {i: name for i, name in reversed(pairs) if type(i) is int and name is not None}
        bare = [i for i in sorted(ids) if i not in beside]
        note = f"no names of class ids ({' or '.join(CLASS_FILES)}): class {bare[0] if bare else 0}, ..."
        return cls({i: beside.get(i, f"class {i}") for i in sorted(ids)}, notes=[note] if bare else [])

    def id_of(self, thing: Any) -> Any:
        """Return the class id of an object, also one that is not among the classes.

        Raises:
            ValueError: it has none, or id and name are of two classes.
        """
        if type(thing) is not dict:
            raise ValueError(f"must be an object with bbox and category, got {shown(thing)}")
        category_id, name = _pair(thing)
        if category_id is None and name is None:
            raise ValueError("has no category or category_id")
        if category_id is None:
            if name not in self._ids:
                raise ValueError(f"category {name!r} is not the name of one of the classes")
            return self._ids[name]
        known = self.names.get(category_id, name) if type(category_id) is int else name
        if name is not None and name != known:
            raise ValueError(f"category_id {category_id} is {known!r}, but category is {name!r}")
        return category_id

    @cached_property
    def _ids(self) -> dict[str | None, int]:
        counts = Counter(self.names.values())
        return {name: i for i, name in self.names.items() if counts[name] == 1}


def _pair(thing: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the class id and the class name of an object; a category that is a number is an id."""
    category_id, name = whole(thing.get("category_id")), thing.get("category")
    if type(name) is str or name is None:
        return category_id, name or None
    return (name if category_id is None else category_id), None


def class_names(folder: Path, root: Path, shards: Sequence[Path]) -> dict[int, str] | None:
    """Return the names in a file of classes beside the shards, above them, or in one of them; None without one.

    Raises:
        DatasetError: the file cannot be used.
    """
    for place in (folder, *folder.parents):
        for file in (place / name for name in CLASS_FILES if place.is_relative_to(root)):
            if file.is_file():
                return _parse(text_of(file, relative(file, root)), relative(file, root))
    for shard in shards:
        for name in listing(shard).names():
            if name.rpartition("/")[2] in CLASS_FILES:
                with open_in_shard(shard, name) as file:
                    return _parse(file.read().decode("utf-8-sig", "replace"), relative(shard / name, root))
    return None


def _parse(text: str, file: str) -> dict[int, str]:
    if not file.endswith(".json"):
        return {k: line.strip() for k, line in enumerate(text.splitlines()) if line.strip()}
    try:
        content = json.loads(text)
        content = content["categories"] if type(content) is dict else content
        if type(content[0]) is str:
            return dict(enumerate(content))
        return {whole(category["id"]): category["name"] for category in content}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        what = '[{"id": 1, "name": "person"}, ...] or a list of names'
        raise DatasetError(f"{file}: must be {what}, got {shown(text[:80])}.") from error
