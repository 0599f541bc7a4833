"""Calls of the matching ops that are like an earlier one: only what can differ is checked before the kernel runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments, LinearSumAssignmentArguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.eager import ORDINARY_TYPES, SeenCalls, are_ordinary, exactly
from dino_kernels.ops._core.native import NativeBackend

# Options with these values can be compared as bytes; those of NumPy's numbers do not show their type.
_PLAIN = (str, bool, int, float, type(None))


class _Predictions(NamedTuple):
    """Findings about the predictions and options of a call."""

    module: NativeBackend
    boxes: bool  # used
    images: int
    classes: int
    class_cost: str
    formula: list[float]


class RepeatedMatching:
    """Calls of `hungarian_match` whose predictions and options an earlier call had, and which differ in the targets.

    Args:
        backends: the op's.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._predictions = SeenCalls()
        self._targets = SeenCalls(any_sizes=True)

    def run(self, logits: Any, boxes: Any, targets: Any, options: Sequence[Any]) -> Any:
        """Return the op's results, or None if there was no such call.

        Args:
            logits, boxes, targets: as the public function has them, `targets` packed.
            options: the others, among them the backend; `ties` and `full` come last.
        """
        given = _listed(logits, boxes)
        if given is None:
            return None
        all_logits, all_boxes = given
        key = exactly(len(all_logits), len(all_boxes), *options)
        found: _Predictions | None = self._predictions.find(key, [*all_logits, *all_boxes]) if key else None
        if not found or targets.num_images != found.images or targets.labels.device != all_logits[0].device:
            return None
        if targets.largest_label is not None and targets.largest_label >= found.classes:
            return None
        truth = [targets.labels, targets.offsets, *([targets.boxes_cxcywh] if found.boxes else [])]
        if not ORDINARY_TYPES.issuperset(map(type, truth)) or not self._targets.find(
            (found.module, found.boxes), truth
        ):
            return None
        labels, offsets, *target_boxes = [tensor.contiguous() for tensor in truth]
        rest = target_boxes[0] if target_boxes else None, offsets, None, targets.max_targets
        arguments = HungarianMatchArguments(
            all_logits, all_boxes if found.boxes else [], labels, *rest, found.class_cost, found.formula, *options[-2:]
        )
        if found.module.unsupported(arguments) is not None:
            return None
        with torch._C._AutoDispatchBelowAutograd():  # the results have no gradient
            return found.module.kernels[0](*arguments)

    def add(
        self, logits: Any, boxes: Any, options: Sequence[Any], arguments: HungarianMatchArguments, name: str
    ) -> None:
        """Remember a call that passed all checks, if the kernel can take its tensors as they are."""
        given = _listed(logits, boxes)
        module = self._backends.modules[name]
        if given is None or not isinstance(module, NativeBackend) or arguments.extra_cost is not None:
            return
        predictions = [*given[0], *given[1]]
        truth = [x for x in (arguments.labels, arguments.offsets, arguments.target_boxes) if x is not None]
        used = [*given[0], *(given[1] if arguments.boxes else [])]
        as_given = zip(used, [*arguments.logits, *arguments.boxes], strict=True)
        key = exactly(len(given[0]), len(given[1]), *options)
        if not key or not are_ordinary([*predictions, *truth]):
            return
        if all(x.dtype == y.dtype and x.stride(-1) == 1 for x, y in as_given) and _are_plain(options):
            _, images, _, classes = arguments.logits[0].shape
            found = _Predictions(
                module, bool(arguments.boxes), images, classes, arguments.class_cost, arguments.formula
            )
            self._predictions.add(key, predictions, found)
            kind = module, found.boxes
            if not self._targets.find(kind, truth):
                self._targets.add(kind, truth, True)


class RepeatedAssignment:
    """Calls of `linear_sum_assignment` for a batch of matrices that are like an earlier one but for their sizes."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._seen = SeenCalls(any_sizes=True)

    def run(self, cost: Any, offsets: Tensor | None, options: Sequence[Any]) -> Any:
        """Return the op's results, or None if there was no such call.

        Args:
            cost, offsets: as the public function has them.
            options: the others; `maximize`, `ties` and `full` come last.
        """
        tensors = [cost] if offsets is None else [cost, offsets]
        if not ORDINARY_TYPES.issuperset(map(type, tensors)):
            return None
        key = exactly(len(tensors), *options)
        module = key and self._seen.find(key, tensors)
        if not module:
            return None
        starts = offsets if offsets is None else offsets.contiguous()
        arguments = LinearSumAssignmentArguments(cost, starts, None, cost.shape[1], *options[-3:])
        if module.unsupported(arguments) is not None:
            return None
        with torch._C._AutoDispatchBelowAutograd():
            return module.forward(arguments)

    def add(self, cost: Any, options: Sequence[Any], arguments: LinearSumAssignmentArguments, name: str) -> None:
        """Remember a call that passed all checks, if the kernel can take its costs as they are."""
        module, offsets = self._backends.modules[name], arguments.offsets
        if not isinstance(module, NativeBackend) or type(cost) not in ORDINARY_TYPES or not _are_plain(options):
            return
        tensors = [cost] if offsets is None else [cost, offsets]
        key = exactly(len(tensors), *options)
        if key and cost.dim() == 3 and cost.dtype == arguments.cost.dtype and are_ordinary(tensors):
            self._seen.add(key, tensors, module)


def _listed(logits: Any, boxes: Any) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return both as lists of tensors, None if they are something else or of a subclass."""
    all_logits, all_boxes = ([] if x is None else list(x) if type(x) in (list, tuple) else [x] for x in (logits, boxes))
    return (all_logits, all_boxes) if ORDINARY_TYPES.issuperset(map(type, all_logits + all_boxes)) else None


def _are_plain(options: Any) -> bool:
    if isinstance(options, (tuple, list)):
        return all(_are_plain(option) for option in options)
    return type(options) in _PLAIN
