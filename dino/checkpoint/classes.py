"""The correspondence between the rows of a checkpoint's class heads and the classes of the model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from dino.data.categories import Categories

CLASS_HEAD = re.compile(r"(decoder|query_selection)\.class_head\.(\d+\.)?(weight|bias)")
LABEL_EMBED = "denoising.label_embed.weight"
# Logit of a label that stands for no category: low enough to keep it out of the 300 best detections.
_NEVER = -10.0


def coco_categories(num_classes: int) -> Categories | None:
    """Return COCO's categories for 80 classes or the official 91, whose labels are category ids; otherwise None."""
    official = Categories.official_coco()
    if num_classes == official.num_classes:
        return official
    used = [label for label in range(official.num_classes) if label not in official.unused]
    return Categories(tuple(used), tuple(official.names[i] for i in used)) if num_classes == len(used) else None


@dataclass(frozen=True)
class ClassRows:
    """The row of the checkpoint for each label of the model; -1 if it has none."""

    rows: tuple[int, ...]
    gaps: tuple[int, ...]
    """Labels that stand for no category."""
    new: tuple[str, ...]
    """Names of the model's classes that the checkpoint does not have."""
    num_source: int

    @property
    def same(self) -> bool:
        return self.rows == tuple(range(self.num_source))


def match_classes(
    num_source: int, num_target: int, source: Categories | None, target: Categories | None
) -> ClassRows | None:
    """Pair classes by name, and those of one name by id. Without names, pair equally many by row; else return None."""
    if source is None or target is None or source.titles == target.titles:
        if num_source != num_target:
            return None
        return ClassRows(tuple(range(num_target)), (), (), num_source)
    row_of = _identities(source)
    found = {label: row_of.get(pair, -1) for pair, label in _identities(target).items()}
    rows = tuple(found.get(label, -1) for label in range(num_target))
    gaps = tuple(sorted(target.unused))
    new = tuple(target.titles[label] for label in range(num_target) if label not in gaps and rows[label] < 0)
    return ClassRows(rows, gaps, new, num_source)


def _identities(categories: Categories) -> dict[tuple[str, int | None], int]:
    """Return the label by name, or by name and id where several categories have the name; without unused labels."""
    counts = Counter(categories.names)
    return {
        (name, None if counts[name] == 1 else category_id): label
        for label, (category_id, name) in enumerate(zip(categories.ids, categories.names, strict=True))
        if label not in categories.unused
    }


def take_rows(name: str, own: Tensor, given: Tensor, classes: ClassRows) -> Tensor | None:
    """Return `own` with the matching rows of `given`, or None if the shapes do not allow it.

    Args:
        name: one that `CLASS_HEAD` matches, or `LABEL_EMBED`, which has one row more than there are classes (not in
            detrex).
        own: the model's tensor, whose other rows are kept.
        given: the checkpoint's tensor.
        classes: the correspondence of the two.
    """
    extra = given.shape[0] - classes.num_source
    if given.shape[1:] != own.shape[1:] or extra not in ((0, 1) if name == LABEL_EMBED else (0,)):
        return None
    taken = own.clone()
    labels = [label for label, row in enumerate(classes.rows) if row >= 0]
    taken[labels] = given[[classes.rows[label] for label in labels]].to(own)
    if name == LABEL_EMBED:
        if extra == 1:
            taken[-1] = given[-1].to(own)
    elif classes.gaps:
        taken[list(classes.gaps)] = _NEVER if own.ndim == 1 else 0.0
    return taken
