"""Shared by the matching ops: formulas of the cost, status bits, argument checks.

No tensor's data is read, so nothing synchronises with a GPU, except in `report_status`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

import torch
from torch import Tensor

from dino_kernels.ops._checks import check_choice, check_flag, check_number, unknown_argument
from dino_kernels.ops._core.arguments import MatchingCostArguments
from dino_kernels.ops._core.dtypes import FLOATING
from dino_kernels.targets import PackedTargets

Predictions = Tensor | Sequence[Tensor]
Targets = PackedTargets | Sequence[Mapping[str, Tensor]]
Ties = Literal["lowest", "scipy"]
Check = Literal["raise", "warn", "none"]

# Bits of a problem's status; 0 if nothing is wrong.
NONFINITE_PREDICTION = 1  # a query's box, or a logit in its cost, is not finite: the query is unmatched
INVALID_TARGET = 2  # a target's box is not finite or of negative size, or its label is no class: it is unmatched
INVALID_COST = 4  # a cost is NaN or the infinity that would always win: its pair is forbidden
INCOMPLETE = 8  # fewer pairs than rows and than columns
# SciPy's messages, which people search for.
MESSAGES = {
    NONFINITE_PREDICTION: "matrix contains invalid numeric entries (predictions that are not finite)",
    INVALID_TARGET: "matrix contains invalid numeric entries (a target's box or label)",
    INVALID_COST: "matrix contains invalid numeric entries",
    INCOMPLETE: "cost matrix is infeasible",
}


class FormulaOptions(TypedDict, total=False):
    """Changes to the preset's formula."""

    class_cost: Literal["focal", "softmax"]
    weights: tuple[float, float, float]
    alpha: float
    gamma: float
    class_eps: float
    giou_eps: float


@dataclass(frozen=True)
class CostFormula:
    """cost = weights[0] * class cost + weights[1] * L1 - weights[2] * GIoU."""

    class_cost: str = "focal"  # focal cost of sigmoid(logit), or "softmax": minus the class's probability
    weights: tuple[float, float, float] = (2.0, 5.0, 2.0)
    alpha: float = 0.25
    gamma: float = 2.0
    class_eps: float = 1e-8  # inside the logarithms of the focal cost
    giou_eps: float = 0.0  # added to the union and to the enclosing area, in squared units of the boxes

    def numbers(self) -> list[float]:
        """Return the numbers in the order in which kernels take them."""
        return [*self.weights, self.alpha, self.gamma, self.class_eps, self.giou_eps]


# Listed once: torch.compile cannot call `fields`.
FORMULA_FIELDS = tuple(field.name for field in fields(CostFormula))
KEYWORDS = {
    "matching_cost": ("preset", "extra_cost", "backend"),
    "hungarian_match": ("preset", "extra_cost", "ties", "check", "full_output", "backend"),
}
PRESETS = {
    "dino": CostFormula(giou_eps=1e-6),  # IDEA's DINO and detrex
    "deformable_detr": CostFormula(),
    "detr": CostFormula(class_cost="softmax", weights=(1.0, 5.0, 2.0)),
    "rt_detr": CostFormula(),
    "d_fine": CostFormula(),
    "rf_detr": CostFormula(class_eps=0.0),  # by logsigmoid
}


def formula_of(op: str, preset: str, options: Mapping[str, object]) -> CostFormula:
    """Return the preset's formula with these changes."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{op}: preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    for name in options:
        if name not in FORMULA_FIELDS:
            raise unknown_argument(op, name, (*KEYWORDS[op], *FORMULA_FIELDS))
    chosen = {name: getattr(PRESETS[preset], name) for name in FORMULA_FIELDS}
    chosen |= {name: x for name, x in options.items() if x is not None}
    formula = CostFormula(**chosen)
    check_choice(op, "class_cost", formula.class_cost, ("focal", "softmax"))
    if not isinstance(formula.weights, (tuple, list)) or len(formula.weights) != 3:
        raise ValueError(f"{op}: weights must be three numbers (class, L1, GIoU), got {formula.weights!r}")
    for weight in formula.weights:
        check_number(op, "each of weights", weight)
    check_number(op, "alpha", formula.alpha)
    check_number(op, "gamma", formula.gamma, 0)
    check_number(op, "class_eps", formula.class_eps, 0)
    check_number(op, "giou_eps", formula.giou_eps, 0)
    return formula


COST_SCHEMA = (
    "Tensor[] logits, Tensor[] boxes, Tensor labels, Tensor? target_boxes, Tensor offsets, Tensor? extra_cost, "
    "SymInt max_targets, str class_cost, float[] formula"
)
ASSIGNMENT_RESULTS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"


def sizes_of(logits: list[Tensor]) -> tuple[int, int]:
    """Return G, the number of sets, and Q, the most queries of a set."""
    return sum(source.shape[0] for source in logits), max(source.shape[2] for source in logits)


def empty_assignment(
    like: Tensor, groups: int, problems: int, rows: int, columns: int, full: bool
) -> tuple[Tensor, ...]:
    """Return the results of an assignment without data: columns, status, objective and both duals."""
    return (
        like.new_empty((groups, rows), dtype=torch.int64),
        like.new_empty((groups, problems), dtype=torch.int32),
        like.new_empty((groups, problems) if full else (0,), dtype=torch.float64),
        like.new_empty((groups, rows) if full else (0,), dtype=torch.float64),
        like.new_empty((groups, problems, columns) if full else (0,), dtype=torch.float64),
    )


def cost_arguments(
    op: str,
    logits: Predictions,
    boxes: Predictions | None,
    targets: Targets,
    preset: str,
    extra_cost: Tensor | None,
    options: Mapping[str, object],
) -> MatchingCostArguments:
    """Check the arguments of a cost and return them in the form that backends take."""
    formula = formula_of(op, preset, options)
    all_logits = _sources(op, "logits", logits, "C")
    first = all_logits[0]
    if not isinstance(targets, PackedTargets):
        targets = PackedTargets.pack(targets, device=first.device)
    for number, source in enumerate(all_logits):
        if source.shape[1] != targets.num_images:
            raise ValueError(
                f"{op}: targets has {targets.num_images} images, logits {_which(number, all_logits)}has "
                f"B = {source.shape[1]} ({list(source.shape)})"
            )
        if source.shape[3] != first.shape[3]:
            raise ValueError(f"{op}: all logits must have C = {first.shape[3]} classes, got {list(source.shape)}")
    if not torch.compiler.is_compiling():  # which would compile again for each largest label
        targets.check_labels(first.shape[3])
    if targets.labels.device != first.device:
        raise ValueError(
            f"{op}: targets is on {targets.labels.device} and logits on {first.device}. Move it with "
            "targets.to(logits.device), once per step"
        )
    needs_boxes = formula.weights[1] != 0 or formula.weights[2] != 0
    all_boxes: list[Tensor] = []
    if needs_boxes:
        if boxes is None or targets.boxes_cxcywh is None:
            missing = "boxes is None" if boxes is None else "targets have no boxes"
            raise ValueError(
                f"{op}: {missing}, but the weights of L1 and GIoU are not 0. Pass boxes, or weights=(1, 0, 0)"
            )
        all_boxes = _sources(op, "boxes", boxes, "4")
        for source in all_boxes:
            _check_device(op, "boxes", source, first)
        shapes = [[*source.shape[:3], 4] for source in all_logits]
        if [list(source.shape) for source in all_boxes] != shapes:
            got = [list(source.shape) for source in all_boxes]
            raise ValueError(f"{op}: boxes must have the shapes {shapes}, as logits, got {got}")
    sets, queries = sizes_of(all_logits)
    if extra_cost is not None:
        if not isinstance(extra_cost, Tensor):
            raise TypeError(f"{op}: extra_cost must be a tensor [G, N, Q] or None, got {type(extra_cost).__name__}")
        expected = [sets, len(targets), queries]
        if extra_cost.dim() != 3 or list(extra_cost.shape[1:]) != expected[1:] or extra_cost.shape[0] not in (1, sets):
            raise ValueError(
                f"{op}: extra_cost must be [G, N, Q] = {expected} or [1, N, Q], in the order of the packed targets, "
                f"got {list(extra_cost.shape)}"
            )
        _check_device(op, "extra_cost", extra_cost, first)
        extra_cost = extra_cost.detach().float()
    truth = targets.labels, targets.boxes_cxcywh if needs_boxes else None, targets.offsets
    numbers = targets.max_targets, formula.class_cost, formula.numbers()
    return MatchingCostArguments(all_logits, all_boxes, *truth, extra_cost, *numbers)


def _which(number: int, sources: list[Tensor]) -> str:
    return f"[{number}] " if len(sources) > 1 else ""


def _check_device(op: str, name: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(f"{op}: {name} is on {tensor.device} and logits on {first.device}. Move it there")


def _sources(op: str, name: str, given: Predictions, last: str) -> list[Tensor]:
    """Check tensors [G, B, Q, n] or [B, Q, n], one or a list; return a list of [G_i, B, Q_i, n] of one dtype."""
    expected = f"[G, B, Q, {last}] or [B, Q, {last}], or a list of such tensors"
    if not isinstance(given, (Tensor, Sequence)) or isinstance(given, str):
        raise TypeError(f"{op}: {name} must be {expected}, got {type(given).__name__}")
    listed = [given] if isinstance(given, Tensor) else list(given)
    if not listed:
        raise ValueError(f"{op}: {name} must be {expected}, got an empty list")
    sources = []
    for tensor in listed:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be {expected}, got {type(tensor).__name__}")
        if tensor.dim() not in (3, 4) or (last == "4" and tensor.shape[-1] != 4):
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{op}: {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}. Convert it with .to()"
            )
        _check_device(op, name, tensor, listed[0])
        sources.append(tensor.detach() if tensor.dim() == 4 else tensor.detach()[None])
    if len({source.dtype for source in sources}) > 1:  # under autocast some may be in 16 bit
        sources = [source.float() for source in sources]
    return sources


def check_choices(op: str, ties: str, check: str, full_output: bool = False) -> None:
    """Check the values of options that the assignments share."""
    check_choice(op, "ties", ties, ("lowest", "scipy"))
    check_choice(op, "check", check, ("raise", "warn", "none"))
    check_flag(op, "full_output", full_output)


def report_status(op: str, status: Tensor, check: str) -> None:
    """Raise or warn if a problem's status is not 0. Synchronises with a GPU unless `check` is "none"."""
    if check == "none":
        return
    host = status.cpu()
    # In eager mode a reduction takes longer than a list; a compiler cannot trace the list.
    if not (host.any() if torch.compiler.is_compiling() else any(host.flatten().tolist())):
        return
    flagged = int((host != 0).sum())
    bits = [bit for bit in MESSAGES if ((host & bit) != 0).any()]
    text = f"{op}: {'; '.join(MESSAGES[bit] for bit in bits)} (in {flagged} of {host.numel()} problems)"
    if check == "raise":
        raise ValueError(text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)
