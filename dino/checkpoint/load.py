"""Loading weights into a model: from this package, the official code, detrex or mmdetection."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dino.checkpoint.classes import CLASS_HEADS, LABEL_EMBED, ClassRows, coco_categories, match_classes, take_rows
from dino.checkpoint.folder import read_categories
from dino.checkpoint.layouts import NEEDLESS, SIGNATURES, layout_of, to_ours
from dino.checkpoint.names import OURS_OFFICIAL, rename
from dino.checkpoint.read import CheckpointError, TensorFile, read_tensors
from dino.common.text import shorten
from dino.data.categories import Categories


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor. Names are the model's, but those of `unexpected` are the file's."""

    format: str
    """Whose names the file had: dino (this package's), official, detrex or mmdet."""
    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...] = ()
    """In the file, but kept wholly or in some rows at the model's own values: other classes, other shapes."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was assumed or made up on the way."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from {self.format} names"]
        for name in ("reinitialised", "missing", "unexpected"):
            values = getattr(self, name)
            parts += [f"{len(values)} {name} ({shorten(values, 3)})"] if values else []
        return "; ".join([*parts, *self.notes])


@dataclass
class _Plan:
    """What loading would do."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What strict loading does not forgive, besides `missing` and `unexpected`."""
    notes: list[str] = field(default_factory=list)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    categories: Categories | None = None,
) -> LoadReport:
    """Put weights into a model.

    A checkpoint of COCO's 80 or 91 classes fits a model of 91 or 80: rows go by category. In general classes are
    paired by name where the names of both sides are known, and by row otherwise.

    Args:
        model: a `DINO`.
        source: a file (.pth, .pt, .safetensors), a directory of `save_model`, or a state dict. Its names may be ours,
            the official code's, detrex's or mmdetection's.
        strict: everything must fit, or nothing is loaded. False is for fine-tuning: what does not fit keeps the model's
            values, and the report says what.
        categories: the model's.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it does not fit, with all that is wrong with it; or it is not a checkpoint. The model is
            unchanged then.
    """
    expected = model.state_dict()
    file = read_tensors(source)
    layout = layout_of(file.tensors)
    if layout is None:
        raise CheckpointError(
            f"{file.where}: none of the known layouts ({', '.join(SIGNATURES)}); its names begin with "
            f"{shorten(file.tensors)}"
        )
    plan = _Plan()
    given = _by_our_names(file, layout, expected, plan)
    classes = _classes(file, layout, given, expected, categories, plan)
    for name, own in expected.items():
        if NEEDLESS.fullmatch(name):
            continue
        if name not in given:
            plan.missing.append(name)
        elif classes is not None and name in (*CLASS_HEADS, LABEL_EMBED) and not _alike(own, given[name], classes):
            taken = take_rows(name, own, given[name], classes)
            if taken is not None:
                plan.tensors[name] = taken
            if taken is None or classes.new:
                plan.reinitialised.append(name)
            if taken is None:
                plan.problems.append(_shapes(name, own, given[name]))
        elif given[name].shape == own.shape and given[name].is_floating_point() == own.is_floating_point():
            plan.tensors[name] = given[name]
        else:
            plan.reinitialised.append(name)
            plan.problems.append(_shapes(name, own, given[name]))
    if not plan.tensors or (strict and (plan.missing or plan.unexpected or plan.problems)):
        raise CheckpointError(_misfit(file.where, layout, plan))
    model.load_state_dict(plan.tensors, strict=False)
    return LoadReport(
        layout,
        tuple(plan.tensors),
        tuple(plan.reinitialised),
        tuple(plan.missing),
        tuple(plan.unexpected),
        tuple(plan.notes),
    )


def _by_our_names(file: TensorFile, layout: str, expected: Mapping[str, Tensor], plan: _Plan) -> dict[str, Tensor]:
    names, unknown = to_ours(layout, [name for name in file.tensors if not NEEDLESS.fullmatch(name)])
    plan.unexpected += unknown
    given = {}
    for ours, copies in names.items():
        if ours not in expected:
            # The official ConvNeXt has a norm for each stage, used or not.
            if not ours.startswith("backbone.norm"):
                plan.unexpected += copies
            continue
        given[ours] = file.tensors[copies[-1]]
        apart = [name for name in copies if not torch.equal(file.tensors[name], given[ours])]
        if apart:
            plan.problems.append(
                f"{ours} is one tensor here, but {shorten([*apart, copies[-1]])} differ: heads that the decoder layers "
                "do not share cannot be represented"
            )
            plan.notes.append(f"{ours}: the last of {len(copies)} differing copies, {copies[-1]}")
    if layout == "mmdet":
        biases = [name for name in expected if name.startswith("neck.") and name.endswith("conv.bias")]
        zero = [name for name in biases if name not in given]
        given.update({name: torch.zeros_like(expected[name]) for name in zero})
        plan.notes += [f"{len(zero)} biases of the neck, which mmdetection does not have, set to 0"] if zero else []
    if layout == "detrex":
        plan.notes.append("detrex encodes positions otherwise (temperature 10000, offset -0.5): fine-tune before use")
    return given


def _classes(
    file: TensorFile,
    layout: str,
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    categories: Categories | None,
    plan: _Plan,
) -> ClassRows | None:
    """How the checkpoint's classes correspond to the model's; None where that is unknown."""
    head = "decoder.class_head.bias"
    if head not in given or head not in expected:
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
            plan.notes.append(f"{num_source} classes of COCO into {num_target}, by category")
    classes = match_classes(num_source, num_target, source, categories)
    if classes is not None and classes.new:
        plan.problems.append(f"classes that the checkpoint does not have: {shorten(classes.new)}")
        plan.notes.append(f"{len(classes.new)} new classes ({shorten(classes.new, 3)})")
    return classes


def _alike(own: Tensor, given: Tensor, classes: ClassRows) -> bool:
    return classes.same and given.shape == own.shape


def _shapes(name: str, own: Tensor, given: Tensor) -> str:
    return f"{name} is {list(own.shape)} {own.dtype} in the model, {list(given.shape)} {given.dtype} in the checkpoint"


def _misfit(where: str, layout: str, plan: _Plan) -> str:
    """All that is wrong, in one text."""
    lines = [f"{where} ({layout} names) does not fit the model; nothing was loaded."]
    spelled = {name: name if layout == "dino" else rename(name, OURS_OFFICIAL) or name for name in plan.missing}
    if plan.missing:
        names = [name if name == theirs else f"{name} (officially {theirs})" for name, theirs in spelled.items()]
        lines.append(f"{len(plan.missing)} missing: {shorten(names)}")
    if plan.unexpected:
        names = [
            f"{name} (perhaps {close[0]})" if (close := difflib.get_close_matches(name, spelled.values(), 1)) else name
            for name in plan.unexpected[:8]
        ]
        lines.append(f"{len(plan.unexpected)} unexpected: {shorten([*names, *plan.unexpected[8:]])}")
    if plan.problems:
        lines.append(f"{len(plan.problems)} that do not fit: {shorten(plan.problems)}")
    lines.append("Build the model with the checkpoint's configuration, or pass strict=False to load what fits.")
    return "\n  ".join(lines)
