"""Build the data sets of a folder, with categories that agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino.common.text import shorten
from dino.data.categories import Categories
from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError
from dino.data.dataset import CocoDataset, Transform
from dino.data.layout import Split, find_splits
from dino.data.transforms import EvalTransform, TrainTransform


@dataclass(frozen=True)
class Datasets:
    """The splits of a folder of data."""

    train: CocoDataset
    valid: CocoDataset
    test: CocoDataset | None
    categories: Categories


def build_datasets(
    data_root: str | Path,
    *,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    official_classes: bool = False,
    skip_invalid: bool = False,
    seed: int = 0,
) -> Datasets:
    """Build the training, validation and, if present, test data of a folder.

    Args:
        data_root: a folder in one of the layouts of `find_splits`.
        train_transform: the default is `TrainTransform()`.
        eval_transform: transform of the other splits; the default is `EvalTransform()`.
        official_classes: use COCO's category ids as labels, 91 classes, as in the published checkpoints. Otherwise the
            categories of the training file get the labels 0, 1, ... in the order of their ids.
        skip_invalid: leave invalid entries out (`dataset.index.describe_problems()` lists them) instead of raising.
        seed: seed of shuffling and augmentation.

    Raises:
        DatasetError: a split is missing or invalid, the splits' categories differ, or there is no box to train on.
    """
    layout = find_splits(data_root)
    train_index = _load(layout.require("train"), skip_invalid)
    categories = _official(train_index) if official_classes else train_index.categories
    if not any(len(train_index.training_boxes(i)[0]) for i in range(len(train_index))):
        raise DatasetError(f"{train_index.annotation_file}: has no box to train on.")
    train = CocoDataset(train_index, categories, train_transform or TrainTransform(), train=True, seed=seed)

    def other(split: Split) -> CocoDataset:
        index = _load(split, skip_invalid)
        difference = train_index.categories.difference(
            index.categories, mine=_name(train_index, layout.root), theirs=_name(index, layout.root)
        )
        if difference is not None:
            raise DatasetError(f"{layout.root}: the splits have different categories: {difference}.")
        return CocoDataset(index, categories, eval_transform or EvalTransform(), train=False, seed=seed)

    valid = other(layout.require("valid"))
    return Datasets(train, valid, other(layout.test) if layout.test else None, categories)


def build_eval_dataset(
    split: Split,
    categories: Categories,
    *,
    transform: Transform | None = None,
    skip_invalid: bool = False,
    strict: bool = False,
) -> CocoDataset:
    """Build a split to evaluate a trained model on.

    Args:
        split: images and annotations.
        categories: the model's categories.
        transform: the default is `EvalTransform()`.
        skip_invalid: leave invalid entries out instead of raising.
        strict: raise at an unreadable image instead of leaving it out.

    Raises:
        DatasetError: the split is invalid, or has categories that the model lacks or has under another name.
    """
    index = _load(split, skip_invalid)
    known = dict(zip(categories.ids, categories.names, strict=True))
    foreign = [
        f"{category_id} ({name!r})"
        for category_id, name in zip(index.categories.ids, index.categories.names, strict=True)
        if known.get(category_id) != name
    ]
    if foreign:
        raise DatasetError(
            f"{split.annotations}: the model has no categories {shorten(foreign, 10)}. Its categories are "
            f"{shorten(known.items(), 10)}."
        )
    return CocoDataset(index, categories, transform or EvalTransform(), train=False, strict=strict)


def _load(split: Split, skip_invalid: bool) -> CocoIndex:
    return CocoIndex.load(split.annotations, split.images, skip_invalid=skip_invalid)


def _official(index: CocoIndex) -> Categories:
    official = Categories.official_coco()
    for category_id, name in zip(index.categories.ids, index.categories.names, strict=True):
        expected = official.names[category_id] if 0 <= category_id < official.num_classes else "no category"
        if name != expected:
            raise DatasetError(
                f"{index.annotation_file}: official_classes needs COCO's categories, but {category_id} is {name!r},"
                f" which is {expected!r} in COCO. Leave official_classes out to train on other categories."
            )
    return official


def _name(index: CocoIndex, root: Path) -> str:
    return str(index.annotation_file.relative_to(root))
