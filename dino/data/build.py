"""Build the data sets of a folder, with categories that agree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dino.common.text import shorten
from dino.data.categories import Categories
from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError
from dino.data.dataset import CocoDataset, Transform
from dino.data.held_out import hold_out
from dino.data.layout import Layout, Split, find_splits
from dino.data.transforms import EvalTransform, TrainTransform


@dataclass(frozen=True)
class Datasets:
    """The splits that training uses."""

    train: CocoDataset
    valid: CocoDataset | None
    """None if the run does not validate."""
    categories: Categories
    layout: Layout


def build_datasets(
    data_root: str | Path,
    *,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    official_classes: bool = False,
    skip_invalid: bool = False,
    seed: int = 0,
    validate: bool = True,
    val_fraction: float = 0.0,
) -> Datasets:
    """Build the training and validation data of a folder. Other splits are not read.

    Args:
        data_root: a folder or file that `find_splits` recognises.
        train_transform: the default is `TrainTransform()`.
        eval_transform: transform of the validation split; the default is `EvalTransform()`.
        official_classes: use COCO's category ids as labels, 91 classes, as in the published checkpoints. Otherwise the
            categories of the training split get the labels 0, 1, ... in the order of their ids.
        skip_invalid: leave invalid entries out (`dataset.index.describe_problems()` lists them) instead of raising.
        seed: seed of shuffling, augmentation and `val_fraction`.
        validate: read the validation split; without, none is needed.
        val_fraction: above 0, validate on this part of the training images, which is then not trained on, instead of on
            the validation split.

    Raises:
        DatasetError: a split is missing or invalid, the splits' categories contradict one another, or there is no box
            to train on.
    """
    layout = find_splits(data_root)
    index = layout.require("train").load(skip_invalid=skip_invalid)
    categories = index.categories
    if official_classes:
        categories = Categories.official_coco()
        index = _official(index, categories)
    valid = None
    if val_fraction > 0:
        index, valid = hold_out(index, val_fraction, seed)
    elif validate:
        advice = "Pass --val-fraction 0.1 to hold out a tenth of the training images, or --evaluate-every 0."
        split = layout.require("valid", advice)
        valid = agreeing(split.load(skip_invalid=skip_invalid), categories, index.name)
    if not any(len(index.training_boxes(i)[0]) for i in range(len(index))):
        raise DatasetError(f"{index.name}: has no box to train on.")
    return Datasets(
        CocoDataset(index, categories, train_transform or TrainTransform(), train=True, seed=seed),
        None
        if valid is None or not validate
        else CocoDataset(valid, categories, eval_transform or EvalTransform(), train=False, seed=seed),
        categories,
        layout,
    )


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
        DatasetError: the split is invalid, has a category under another id or name than the model, or has boxes of a
            category that the model lacks.
    """
    index = agreeing(split.load(skip_invalid=skip_invalid), categories, "the model")
    return CocoDataset(index, categories, transform or EvalTransform(), train=False, strict=strict)


def find_eval_split(
    data_root: str | Path, name: str, *, val_fraction: float = 0.0, seed: int = 0, trained_on: str | Path | None = None
) -> Split:
    """Find the split of a data set to evaluate a model on.

    For "valid" these are the images that the model's run held out, if the data are those of the run or have no
    validation split. A data set of one split without a name, such as a JSON file, is taken whole.

    Args:
        data_root: a folder or file that `find_splits` recognises.
        name: "train", "valid" or "test"; "train" is without the images held out.
        val_fraction, seed: options of the run.
        trained_on: the data of the run.

    Raises:
        DatasetError: the data are not recognised, or do not have the split.
    """
    layout = find_splits(data_root)
    is_same = trained_on is not None and Path(trained_on).resolve() == Path(data_root).resolve()
    if val_fraction > 0 and name != "test" and layout.train is not None and (is_same or layout.valid is None):
        part = ("train", "valid").index(name)
        return replace(layout.train, choose=lambda index: hold_out(index, val_fraction, seed)[part])
    return layout.require("train" if layout.unnamed else name, "Choose another with --split.")


def agreeing(index: CocoIndex, known: Categories, owner: str) -> CocoIndex:
    """Return an index whose categories are among those of the training data or the model.

    Categories are compared by id and name, or by name alone where the format has no ids. A category that no box uses
    may be missing.

    Args:
        index: a validation split.
        known: the categories of the training split or of the model.
        owner: whose they are, for messages.

    Raises:
        DatasetError: a category is known under another name or id, or is unknown and has boxes.
    """
    names = dict(zip(known.ids, known.names, strict=True))
    gaps = {known.ids[label] for label in known.unused}
    ids = {name: category_id for category_id, name in names.items() if category_id not in gaps}
    if index.named:
        index = numbered_by_name(index, ids)
    pairs = list(zip(index.categories.ids, index.categories.names, strict=True))
    used = index.boxes_per_category.keys()
    wrong = [
        f"category {i} is {names[i]!r} in {owner} but {name!r} in {index.name}"
        for i, name in pairs
        if i in names and names[i] != name and (i in used or i not in gaps)
    ]
    wrong += [
        f"category {name!r} is {ids[name]} in {owner} but {i} in {index.name}"
        for i, name in pairs
        if i not in names and name in ids
    ]
    unknown = [
        repr(name) if index.named else f"{i} ({name!r})"
        for i, name in pairs
        if i not in names and name not in ids and i in used
    ]
    if unknown:
        wrong.append(f"{index.name} has boxes of {shorten(unknown, 10)}, which {owner} has not")
    if wrong:
        raise DatasetError(f"the categories do not agree: {shorten(wrong, 10, separator='; ')}.")
    kept = [(i, name) for i, name in pairs if names.get(i) == name] or list(names.items())
    return replace(index, categories=Categories(tuple(i for i, _ in kept), tuple(name for _, name in kept)))


def numbered_by_name(index: CocoIndex, ids: dict[str, int]) -> CocoIndex:
    """Return an index of a format without ids with known ids by name; unknown names get ids that are not known."""
    free = max([*ids.values(), 0]) + 1
    own = dict(zip(index.categories.ids, index.categories.names, strict=True))
    new = {i: ids.get(name, free + k) for k, (i, name) in enumerate(own.items())}
    pairs = sorted((new[i], name) for i, name in own.items())
    return replace(
        index,
        categories=Categories(tuple(i for i, _ in pairs), tuple(name for _, name in pairs)),
        columns=replace(index.columns, class_ids=np.array([new.get(i, i) for i in index.columns.class_ids.tolist()])),
    )


def _official(index: CocoIndex, official: Categories) -> CocoIndex:
    if index.named:
        return agreeing(index, official, "COCO")
    for category_id, name in zip(index.categories.ids, index.categories.names, strict=True):
        expected = official.names[category_id] if 0 <= category_id < official.num_classes else "no category"
        if name != expected:
            raise DatasetError(
                f"{index.name}: official_classes needs COCO's categories, but {category_id} is {name!r},"
                f" which is {expected!r} in COCO. Leave official_classes out to train on other categories."
            )
    return index
