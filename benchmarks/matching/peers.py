"""Define who takes part in matching: our backends, DINO's own way, SciPy, and other solvers that are importable.

Each gets a step's inputs in its own form, which is prepared before it is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import dino_kernels
from benchmarks.attention.peers import BACKENDS, import_error
from benchmarks.matching.workloads import (
    ASSIGNMENT,
    COST,
    MATCHER,
    OPS,
    MatchingStep,
    sample_predictions,
    sample_targets,
)
from dino_kernels import PackedTargets
from dino_kernels.nn import HungarianMatcher

ALPHA, GAMMA, CLASS_EPS, GIOU_EPS = 0.25, 2, 1e-8, 1e-6
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0
# The baseline of each job: what DINO does.
BASELINES = {COST: "dino", ASSIGNMENT: "scipy", MATCHER: "dino"}

# The end of the names of our contestants from DETR's list of targets to DETR's lists of pairs.
LISTS = "-lists"
TLA, DEFORMABLE_DETR_LOSS = "torch_linear_assignment", "transformers.loss.loss_deformable_detr"
Pairs = tuple[Any, Any]  # queries and targets of one image, as DETR has them


class MatchingInputs:
    """One step's predictions, targets and costs."""

    def __init__(self, step: MatchingStep, device: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        targets = sample_targets(step, generator)
        logits, boxes = sample_predictions(step, targets, generator)
        self.step = step
        self.logits, self.boxes = logits.to(device), boxes.to(device)  # [G, B, Q, C], [G, B, Q, 4]
        self.targets = [{name: tensor.to(device) for name, tensor in target.items()} for target in targets]
        self.packed = PackedTargets.pack(self.targets)
        self._seed = seed

    @cached_property
    def layers(self) -> list[dict[str, Tensor]]:
        """Return each set's `pred_logits` [B, Q, C] and `pred_boxes` [B, Q, 4], as the models of DETR's family do."""
        both = zip(self.logits, self.boxes, strict=True)
        return [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in both]

    @cached_property
    def counts(self) -> list[int]:
        """Return T of each image."""
        return [len(target["labels"]) for target in self.targets]

    @cached_property
    def cost(self) -> Tensor:
        """Return the costs for the assignment, [G, N, Q] float32, in the order of the packed targets."""
        if self.step.costs == "random":
            shape = (self.step.sets, len(self.packed), self.step.queries)
            generator = torch.Generator().manual_seed(self._seed)
            return torch.rand(shape, generator=generator).to(self.logits.device)
        return own_pairs_cost(self, torch.float32)

    @cached_property
    def costs_as_dino_has_them(self) -> list[Tensor]:
        """Return [B, Q, N] of each set. All images may share a matrix, of which each reads only its own columns."""
        return [layer.T.contiguous().expand(self.step.images, -1, -1) for layer in self.cost]

    @cached_property
    def float64_matrices(self) -> list[np.ndarray]:
        """Return [T, Q] of each problem, contiguous: usually T < Q, which SciPy need not transpose."""
        return [m.double().cpu().contiguous().numpy() for layer in self.cost for m in layer.split(self.counts)]

    @cached_property
    def padded(self) -> Tensor:
        """Return [G * B, most T, Q]. Rows without a target cost the same everywhere, and so change nothing."""
        sets, queries, most = self.step.sets, self.step.queries, max(self.counts)
        padded = self.cost.new_zeros(sets, self.step.images, most, queries)
        for image, block in enumerate(self.cost.split(self.counts, 1)):
            padded[:, image, : block.shape[1]] = block
        return padded.flatten(0, 1)

    @cached_property
    def targets_of_transformers(self) -> list[dict[str, Tensor]]:
        return [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in self.targets]


@dataclass(frozen=True)
class Matcher:
    """One contestant."""

    name: str
    ours: bool
    ops: tuple[str, ...]
    run: Callable[[str, MatchingInputs], Any]
    # What `run` returned, as this package returns it: costs [G, N, Q], or the query of each target [G, N].
    answer: Callable[[str, MatchingInputs, Any], Tensor]
    unsupported: Callable[[str, MatchingInputs], str | None]  # the reason, or None
    giou_eps: float = GIOU_EPS


def matchers() -> dict[str, Matcher]:
    everyone = [_backend(name) for name in BACKENDS]
    everyone += [_lists(name) for name in BACKENDS if name != "reference"]
    everyone += [
        Matcher("dino", False, (COST, MATCHER), _dino, _dino_answer, _always),
        Matcher("scipy", False, (ASSIGNMENT,), _scipy_as_dino, _pairs_answer, _always),
        Matcher("scipy-float64", False, (ASSIGNMENT,), _scipy_float64, _rows_answer, _always),
        Matcher("lapx-lapjvh", False, (ASSIGNMENT,), _lapjvh, _rows_answer, _lapx_unsupported),
        Matcher("torch-linear-assignment", False, (ASSIGNMENT,), _tla, _padded_answer, _needs(TLA)),
        Matcher("tla-unchecked", False, (ASSIGNMENT,), _tla_unchecked, _padded_answer, _tla_unchecked_unsupported),
        Matcher("transformers", False, (MATCHER,), _transformers, _pairs_answer, _needs(DEFORMABLE_DETR_LOSS), 0.0),
    ]
    return {matcher.name: matcher for matcher in everyone}


def _always(op: str, inputs: MatchingInputs) -> None:
    return None


def _needs(module: str) -> Callable[[str, MatchingInputs], str | None]:
    return lambda op, inputs: import_error(module)


# This package.


def _backend(name: str) -> Matcher:
    def run(op: str, inputs: MatchingInputs) -> Tensor:
        arguments, options = _arguments(op, inputs)
        result = getattr(dino_kernels, op)(*arguments, **options, backend=name)
        return result.query_idx if op == MATCHER else result

    return Matcher(name, True, OPS, run, lambda op, inputs, result: result, _backend_unsupported(name))


def _backend_unsupported(name: str) -> Callable[[str, MatchingInputs], str | None]:
    def unsupported(op: str, inputs: MatchingInputs) -> str | None:
        arguments, options = _arguments(op, inputs)
        return dino_kernels.explain(getattr(dino_kernels, op), *arguments, **options).reasons[name]

    return unsupported


def _lists(name: str) -> Matcher:
    """Do what DINO's matcher does, from a list of targets to lists of pairs on the host, in one call for all sets."""
    module = HungarianMatcher(CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT, preset="dino", backend=name)

    def run(op: str, inputs: MatchingInputs) -> list[list[Pairs]]:
        return module.match_all(inputs.layers, inputs.targets)

    return Matcher(f"{name}{LISTS}", True, (MATCHER,), run, _pairs_answer, _backend_unsupported(name))


def _arguments(op: str, inputs: MatchingInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if op == ASSIGNMENT:
        return (inputs.cost,), {"offsets": inputs.packed.offsets}
    return (inputs.logits, inputs.boxes, inputs.packed), {}


# DINO: all queries of the batch with all targets of the batch on all classes, a decoder layer at a time.


def pair_cost(
    logits: Tensor,  # [n, C]
    boxes: Tensor,  # [n, 4]
    labels: Tensor,  # [N]
    target_boxes: Tensor,  # [N, 4]
    giou_eps: float = GIOU_EPS,
) -> Tensor:
    """Compute the matching cost as DINO does (arXiv 2203.03605, after 2010.04159), [n, N]."""
    probability = logits.sigmoid()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + CLASS_EPS).log()
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + CLASS_EPS).log()
    class_cost = positive[:, labels] - negative[:, labels]
    l1 = torch.cdist(boxes, target_boxes, p=1)
    return CLASS_WEIGHT * class_cost + L1_WEIGHT * l1 - GIOU_WEIGHT * _giou(boxes, target_boxes, giou_eps)


def _giou(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    """Compute the generalised IoU of all pairs, [n, N]."""
    low, high = boxes[:, None, :2] - boxes[:, None, 2:] / 2, boxes[:, None, :2] + boxes[:, None, 2:] / 2
    other_low, other_high = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    shared = (torch.min(high, other_high) - torch.max(low, other_low)).clamp(min=0).prod(-1)
    hull = (torch.max(high, other_high) - torch.min(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - shared
    return shared / (union + eps) - (hull - union) / (hull + eps)


def own_pairs_cost(inputs: MatchingInputs, dtype: torch.dtype, giou_eps: float = GIOU_EPS) -> Tensor:
    """Compute the same formula in `dtype`, only for pairs within an image, [G, N, Q]."""
    return torch.stack(
        [
            torch.cat(
                [
                    pair_cost(a.to(dtype), b.to(dtype), t["labels"], t["boxes"].to(dtype), giou_eps).T
                    for a, b, t in zip(logits, boxes, inputs.targets, strict=True)
                ]
            )
            for logits, boxes in zip(inputs.logits, inputs.boxes, strict=True)
        ]
    )


def _dino(op: str, inputs: MatchingInputs) -> list[Any]:
    with torch.no_grad():
        if op == COST:
            return [_dino_cost(layer, inputs.targets) for layer in inputs.layers]
        return [_solve_images(_dino_cost(layer, inputs.targets), inputs.counts) for layer in inputs.layers]


def _dino_cost(layer: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Compute the cost [B, Q, N] of one layer."""
    logits, boxes = layer["pred_logits"], layer["pred_boxes"]
    labels, target_boxes = (torch.cat([target[name] for target in targets]) for name in ("labels", "boxes"))
    cost = pair_cost(logits.flatten(0, 1), boxes.flatten(0, 1), labels, target_boxes)
    return cost.view(*logits.shape[:2], -1)


def _solve_images(cost: Tensor, counts: list[int]) -> list[Pairs]:
    """Solve the part [Q, T] of each image with SciPy, on a strided view of float32."""
    pairs = [linear_sum_assignment(part[image]) for image, part in enumerate(cost.cpu().split(counts, -1))]
    return [(torch.as_tensor(queries), torch.as_tensor(targets)) for queries, targets in pairs]


def _dino_answer(op: str, inputs: MatchingInputs, result: list[Any]) -> Tensor:
    if op == MATCHER:
        return _pairs_answer(op, inputs, result)
    own = [torch.cat([part[b] for b, part in enumerate(layer.split(inputs.counts, -1))], -1).T for layer in result]
    return torch.stack(own)


def _pairs_answer(op: str, inputs: MatchingInputs, sets: Sequence[Sequence[Pairs]]) -> Tensor:
    """Convert the pairs of each set and image."""
    columns = torch.full((inputs.step.sets, len(inputs.packed)), -1)
    for row, images in zip(columns, sets, strict=True):
        for part, (queries, targets) in zip(row.split(inputs.counts), images, strict=True):
            part[torch.as_tensor(targets).cpu()] = torch.as_tensor(queries).cpu()
    return columns


# Solvers.


def _scipy_as_dino(op: str, inputs: MatchingInputs) -> list[list[Pairs]]:
    return [_solve_images(cost, inputs.counts) for cost in inputs.costs_as_dino_has_them]


def _scipy_float64(op: str, inputs: MatchingInputs) -> list[Pairs]:
    return [linear_sum_assignment(matrix) for matrix in inputs.float64_matrices]


def _rows_answer(op: str, inputs: MatchingInputs, pairs: Sequence[Pairs]) -> Tensor:
    """Convert the targets and queries of each problem's pairs."""
    columns = torch.full((inputs.step.sets, len(inputs.packed)), -1)
    problems = [part for row in columns for part in row.split(inputs.counts)]
    for part, (targets, queries) in zip(problems, pairs, strict=True):
        part[torch.as_tensor(targets)] = torch.as_tensor(queries)
    return columns


def _lapjvh(op: str, inputs: MatchingInputs) -> list[Pairs]:
    """Solve with the solver of lapx that is the fastest on few rows; its usual one, lapjv, pads to a square."""
    lapjvh = importlib.import_module("lap").lapjvh
    return [lapjvh(matrix, extend_cost=True, return_cost=False) for matrix in inputs.float64_matrices]


def _lapx_unsupported(op: str, inputs: MatchingInputs) -> str | None:
    missing = import_error("lap")
    if missing is None and not hasattr(importlib.import_module("lap"), "lapjvh"):
        return "the installed lap has no lapjvh: pip install lapx"
    return missing


def _tla(op: str, inputs: MatchingInputs) -> Tensor:
    return importlib.import_module(TLA).batch_linear_assignment(inputs.padded)


def _tla_unchecked(op: str, inputs: MatchingInputs) -> Tensor:
    """Run its kernel alone, without the two checks that wait for the GPU, so that a graph can hold it."""
    return importlib.import_module(f"{TLA}._triton").batch_linear_assignment(inputs.padded, validation="off")


def _padded_answer(op: str, inputs: MatchingInputs, result: Tensor) -> Tensor:
    """Convert the queries of each row of the padded problems, [G * B, most T]."""
    by_image = result.view(inputs.step.sets, inputs.step.images, -1)
    return torch.cat([by_image[:, image, :count] for image, count in enumerate(inputs.counts)], 1)


def _tla_unchecked_unsupported(op: str, inputs: MatchingInputs) -> str | None:
    if inputs.cost.device.type != "cuda":
        return "its Triton kernel runs on CUDA only"
    return import_error(f"{TLA}._triton")


def _transformers(op: str, inputs: MatchingInputs) -> list[list[Pairs]]:
    """Run the matcher of its Deformable DETR, a layer at a time."""
    module = importlib.import_module(DEFORMABLE_DETR_LOSS)
    matcher = module.DeformableDetrHungarianMatcher(CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT)
    return [
        matcher({"logits": layer["pred_logits"], "pred_boxes": layer["pred_boxes"]}, inputs.targets_of_transformers)
        for layer in inputs.layers
    ]
