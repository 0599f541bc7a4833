"""Load weights into a model: from this package, the official code, detrex or mmdetection."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dino.checkpoint.classes import CLASS_HEAD, LABEL_EMBED, ClassRows, coco_categories, match_classes, take_rows
from dino.checkpoint.folder import read_categories
from dino.checkpoint.layouts import IGNORED, MERGING, SIGNATURES, VARIANTS, layout_of, official_merging, to_ours
from dino.checkpoint.names import OURS_OFFICIAL, rename
from dino.checkpoint.read import CheckpointError, TensorFile, read_tensors
from dino.common.text import closest, counted, shorten
from dino.data.categories import Categories
from dino.model.config import ModelConfig


@dataclass(frozen=True)
class LoadReport:
    """The outcome for each tensor. Names are the model's, except those of `unexpected`, which are the file's."""

    format: str
    """Layout of the file's names: dino (this package's), official, detrex or mmdet."""
    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...] = ()
    """In the file, but with other classes or another shape: all or some rows keep the model's values."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Assumptions and substitutions."""

    @property
    def fits(self) -> bool:
        """Whether at least half of the tensors after the backbone were loaded whole: else it is another model."""
        whole = set(self.loaded) - set(self.reinitialised)
        every = {
            name for name in (*self.loaded, *self.reinitialised, *self.missing) if not name.startswith("backbone.")
        }
        return 2 * len(every & whole) >= len(every)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from {self.format} names"]
        for name in ("reinitialised", "missing", "unexpected"):
            values = getattr(self, name)
            parts += [f"{len(values)} {name} ({shorten(values, 3)})"] if values else []
        return "; ".join([*parts, *self.notes])


@dataclass
class _Draft:
    """A report in the making, with the tensors to load."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Reasons to refuse strict loading besides `missing` and `unexpected`."""
    notes: list[str] = field(default_factory=list)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any] | TensorFile,
    *,
    strict: bool = True,
    categories: Categories | None = None,
) -> LoadReport:
    """Load weights into a model.

    A checkpoint with COCO's 80 or 91 classes fits a model with 91 or 80: rows are assigned by category. Other classes
    are paired by name if the names of both sides are known, and by row otherwise.

    Args:
        model: a `DINO`.
        source: a file (.pth, .pt, .safetensors), a directory of `save_model`, or a state dict. Its names may be ours,
            the official code's, detrex's or mmdetection's.
        strict: refuse to load anything unless everything fits. False is for fine-tuning: weights that do not fit keep
            their values and are listed in the report.
        categories: the model's categories.

    Returns:
        A report of the tensors that were loaded and those that were not.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is not a checkpoint or does not fit. The model is then unchanged.
    """
    expected = model.state_dict()
    file = read_tensors(source)
    layout = layout_of(file.tensors)
    if layout is None:
        raise CheckpointError(
            f"{file.where}: none of the known layouts ({', '.join(SIGNATURES)}); its names begin with "
            f"{shorten(file.tensors)}"
        )
    draft = _Draft()
    given = _by_our_names(file, layout, expected, draft)
    _check_positions(model, layout, draft)
    classes = _classes(file, layout, given, expected, categories, draft)
    for name, own in expected.items():
        if IGNORED.fullmatch(name):
            continue
        if name not in given:
            draft.missing.append(name)
        elif (
            classes is not None
            and (CLASS_HEAD.fullmatch(name) or name == LABEL_EMBED)
            and not (classes.same and given[name].shape == own.shape)
        ):
            taken = take_rows(name, own, given[name], classes)
            if taken is not None:
                draft.tensors[name] = taken
            if taken is None or classes.new:
                draft.reinitialised.append(name)
            if taken is None:
                draft.problems.append(_shapes(name, own, given[name]))
        elif given[name].shape == own.shape and given[name].is_floating_point() == own.is_floating_point():
            draft.tensors[name] = given[name]
        else:
            draft.reinitialised.append(name)
            draft.problems.append(_shapes(name, own, given[name]))
    if not draft.tensors or (strict and (draft.missing or draft.unexpected or draft.problems)):
        raise CheckpointError(_misfit(file.where, layout, draft))
    model.load_state_dict(draft.tensors, strict=False)
    outcomes = draft.tensors, draft.reinitialised, draft.missing, draft.unexpected, draft.notes
    return LoadReport(layout, *map(tuple, outcomes))


def _by_our_names(file: TensorFile, layout: str, expected: Mapping[str, Tensor], draft: _Draft) -> dict[str, Tensor]:
    shared = not any(name.startswith("decoder.class_head.0.") for name in expected)
    names, unknown = to_ours(
        layout, [name for name in file.tensors if not IGNORED.fullmatch(name)], shared_heads=shared
    )
    draft.unexpected += unknown
    given = {}
    for ours, copies in names.items():
        if ours not in expected:
            # The official ConvNeXt has a norm for each stage, used or not.
            if not ours.startswith("backbone.norm"):
                draft.unexpected += copies
            continue
        given[ours] = file.tensors[copies[-1]]
        apart = [name for name in copies if not torch.equal(file.tensors[name], given[ours])]
        if apart:
            draft.problems.append(
                f"{ours} is one tensor here, but {shorten([*apart, copies[-1]])} differ: the decoder layers do not "
                "share their heads. Build the model with shared_heads=False"
            )
            draft.notes.append(f"{ours}: the last of {len(copies)} differing copies, {copies[-1]}")
    if layout == "mmdet":
        given |= {name: official_merging(tensor) for name, tensor in given.items() if MERGING.match(name)}
        biases = [name for name in expected if name.startswith("neck.") and name.endswith("conv.bias")]
        zero = [name for name in biases if name not in given]
        given.update({name: torch.zeros_like(expected[name]) for name in zero})
        draft.notes += [f"{len(zero)} biases of the neck set to 0: mmdetection has none"] if zero else []
    return given


def _check_positions(model: nn.Module, layout: str, draft: _Draft) -> None:
    """Note that the model embeds positions in another way than the layout's models: its detections would be wrong."""
    config = getattr(model, "config", None)
    theirs = {name: value for name, value in VARIANTS.get(layout, {}).items() if name.startswith("position_")}
    if isinstance(config, ModelConfig) and any(getattr(config, name) != value for name, value in theirs.items()):
        fields = ", ".join(f"{name}={value:g}" for name, value in theirs.items())
        draft.problems.append(f"{layout} embeds positions in another way. Build the model with {fields}")
        draft.notes.append(f"{layout} embeds positions in another way ({fields}): fine-tune before use")


def _classes(
    file: TensorFile,
    layout: str,
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    categories: Categories | None,
    draft: _Draft,
) -> ClassRows | None:
    """Match the checkpoint's classes to the model's; None if that is not possible."""
    head = next((name for name in expected if name.startswith("decoder.class_head.") and name.endswith("bias")), "")
    if head not in given:
        return None
    num_source, num_target = len(given[head]), len(expected[head])
    if categories is not None and categories.num_classes != num_target:
        raise ValueError(f"categories must be the model's {num_target}, got {categories.num_classes}")
    if layout == "dino":
        source = read_categories(file)
    else:
        source = coco_categories(num_source) if num_source == (91 if layout == "official" else 80) else None
    if source is not None and categories is None and num_source != num_target:
        categories = coco_categories(num_target)
        if categories is not None:
            draft.notes.append(f"{num_source} classes of COCO into {num_target}, by category")
    classes = match_classes(num_source, num_target, source, categories)
    if classes is not None and classes.new:
        draft.problems.append(f"classes that the checkpoint does not have: {shorten(classes.new)}")
        draft.notes.append(f"{counted(len(classes.new), 'new class')} ({shorten(classes.new, 3)})")
    return classes


def _shapes(name: str, own: Tensor, given: Tensor) -> str:
    return f"{name} is {list(own.shape)} {own.dtype} in the model, {list(given.shape)} {given.dtype} in the checkpoint"


def _misfit(where: str, layout: str, draft: _Draft) -> str:
    """Return an error message with everything that does not fit."""
    lines = [f"{where} ({layout} names) does not fit the model; nothing was loaded."]
    spelled = {name: name if layout == "dino" else rename(name, OURS_OFFICIAL) or name for name in draft.missing}
    if draft.missing:
        names = [name if name == theirs else f"{name} (officially {theirs})" for name, theirs in spelled.items()]
        lines.append(f"{len(draft.missing)} missing: {shorten(names)}")
    if draft.unexpected:
        names = [
            f"{name} (perhaps {close})" if (close := closest(name, spelled.values())) else name
            for name in draft.unexpected[:8]
        ]
        lines.append(f"{len(draft.unexpected)} unexpected: {shorten([*names, *draft.unexpected[8:]])}")
    if draft.problems:
        lines.append(f"{len(draft.problems)} that do not fit: {shorten(draft.problems)}")
    lines.append("Build the model with the checkpoint's configuration, or pass strict=False to load what fits.")
    return "\n  ".join(lines)
