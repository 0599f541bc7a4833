"""Map class labels of the model to category ids of a COCO annotation file and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dino.common.text import shorten

NO_CATEGORY = "N/A"
"""What the unused labels of `Categories.official_coco()` are called; another data set may have a class of this name."""


@dataclass(frozen=True)
class Categories:
    """The categories of a data set. The label of a category is its position here.

    `ids` may be any distinct integers: sparse, 0-based, 1-based, large.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    unused: frozenset[int] = frozenset()
    """Labels that stand for no category."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "unused", frozenset(self.unused))
        if not self.ids or len(self.ids) != len(self.names):
            raise ValueError(
                f"Categories: ids and names must have one length, at least 1; got {len(self.ids)} and {len(self.names)}"
            )
        for category_id in self.ids:
            if type(category_id) is not int:
                raise ValueError(f"Categories: ids must be integers, got {category_id!r}")
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"Categories: names must be non-empty text, got {name!r}")
        if len(self._label_by_id) != len(self.ids):
            twice = next(category_id for k, category_id in enumerate(self.ids) if category_id in self.ids[:k])
            raise ValueError(f"Categories: ids must be distinct, got {twice} more than once")

    @classmethod
    def from_json(cls, records: Iterable[Mapping[str, Any]]) -> Categories:
        """Read a list of `{"id": 1, "name": "person"}`, in the order of the labels.

        Raises:
            ValueError: a record has no id or name, or one that `Categories` does not allow.
        """
        records = list(records)
        for record in records:
            if not isinstance(record, Mapping) or "id" not in record or "name" not in record:
                raise ValueError(f'Categories: expected {{"id": 1, "name": "person"}}, got {record!r}')
        unused = frozenset(label for label, record in enumerate(records) if record.get("unused") is True)
        found = cls(tuple(record["id"] for record in records), tuple(record["name"] for record in records), unused)
        official = cls.official_coco()  # written before `unused` was
        return official if (found.ids, found.names) == (official.ids, official.names) else found

    @classmethod
    def official_coco(cls) -> Categories:
        """Return the 91 classes of the published checkpoints: labels are COCO's category ids, and 11 are unused."""
        names = tuple(_COCO_NAMES.get(category_id, NO_CATEGORY) for category_id in range(91))
        return cls(tuple(range(91)), names, frozenset(_COCO_GAPS))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the list that `from_json` reads, which is also the `categories` of a COCO file."""
        return [
            {"id": category_id, "name": name, **({"unused": True} if label in self.unused else {})}
            for label, (category_id, name) in enumerate(zip(self.ids, self.names, strict=True))
        ]

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """Names to display, all different: names that occur more than once end with " (id N)"."""
        titles = list(self.names)
        while len(counts := Counter(titles)) < len(titles):  # again if a name looks like a title just made
            titles = [f"{t} (id {i})" if counts[t] > 1 else t for t, i in zip(titles, self.ids, strict=True)]
        return tuple(titles)

    @property
    def num_classes(self) -> int:
        return len(self.ids)

    def category_id_of(self, label: int) -> int:
        """Return the category id of a label.

        Raises:
            ValueError: the label is not one of 0 .. num_classes - 1.
        """
        if not 0 <= label < len(self.ids):
            raise ValueError(f"label must be one of 0..{len(self.ids) - 1}, got {label}")
        return self.ids[label]

    def label_of(self, category_id: int) -> int:
        """Return the label of a category id.

        Raises:
            ValueError: the data set has no such category.
        """
        label = self._label_by_id.get(category_id)
        if label is None:
            raise ValueError(f"category id must be one of {shorten(self.ids, 20)}, got {category_id}")
        return label

    def name_of(self, label: int) -> str:
        """Return the name of a label."""
        self.category_id_of(label)
        return self.names[label]

    def difference(self, other: Categories, *, mine: str, theirs: str) -> str | None:
        """Describe how the categories differ from `other`, or return None if they are the same in any order.

        Args:
            other: for example the categories of another split.
            mine: a name for these categories in the text, for example their file name.
            theirs: a name for the others.
        """
        own = dict(zip(self.ids, self.names, strict=True))
        foreign = dict(zip(other.ids, other.names, strict=True))
        parts = [
            f"category {category_id} is {own[category_id]!r} in {mine} but {foreign[category_id]!r} in {theirs}"
            for category_id in own
            if category_id in foreign and own[category_id] != foreign[category_id]
        ]
        for file, here, there in ((mine, own, foreign), (theirs, foreign, own)):
            only = [f"{category_id} ({name!r})" for category_id, name in here.items() if category_id not in there]
            if only:
                parts.append(f"only {file} has {shorten(only, 10)}")
        return shorten(parts, 10, separator="; ") if parts else None

    @cached_property
    def _label_by_id(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids)}


_COCO_GAPS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# fmt: off
_COCO_NAMES_IN_ORDER = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)
# fmt: on
_COCO_NAMES = dict(zip((i for i in range(91) if i not in _COCO_GAPS), _COCO_NAMES_IN_ORDER, strict=True))
