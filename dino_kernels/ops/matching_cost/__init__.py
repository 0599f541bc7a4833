"""The cost of matching every target with every query of its image."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import MatchingCostArguments as Arguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._matching import (
    COST_SCHEMA,
    FormulaOptions,
    Predictions,
    Targets,
    cost_arguments,
    sizes_of,
)
from dino_kernels.ops.matching_cost import native, reference, triton

OP = "matching_cost"


def prepare(
    logits: Predictions,
    boxes: Predictions | None,
    targets: Targets,
    *,
    preset: str = "dino",
    extra_cost: Tensor | None = None,
    **formula: Unpack[FormulaOptions],
) -> Arguments:
    """Check the arguments and return them in the form that backends take."""
    return cost_arguments(OP, logits, boxes, targets, preset, extra_cost, formula)


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


def matching_cost(
    logits: Predictions,  # [G, B, Q, C], or a list of [G_i, B, Q_i, C] and [B, Q_i, C]
    boxes: Predictions | None,  # likewise [G, B, Q, 4], (cx, cy, w, h)
    targets: Targets,
    *,
    preset: str = "dino",
    extra_cost: Tensor | None = None,
    backend: str = "auto",
    **formula: Unpack[FormulaOptions],
) -> Tensor:
    """Compute the cost of every target with every query of its image, for several sets of predictions at once.

    `weights[0] * class cost + weights[1] * L1 - weights[2] * GIoU` (DETR, arXiv 2005.12872, equation 1 and appendix
    A.2), with L1 of (cx, cy, w, h) and GIoU of corners. The class cost of probability p is

    - "focal": `alpha (1 - p)^gamma (-log(p + class_eps)) - (1 - alpha) p^gamma (-log(1 - p + class_eps))`, p = sigmoid;
    - "softmax": `-p`, p = softmax.

    Only pairs within an image are computed, in float32 for all dtypes. A pair costs infinity if it must not be matched:
    its query's box, or a logit in its cost, is not finite (softmax allows -inf), its target's label is no class, or its
    target's box is not finite or of negative size. The result has no gradient.

    Args:
        logits: those of all sets: every decoder layer, the encoder, groups. A list needs no copy to stack its sets,
            which may differ in Q.
        boxes: those of all sets, in the unit of the targets; may be None if the weights of L1 and GIoU are 0.
        targets: `PackedTargets`, or per image a dictionary with `labels` [T] and `boxes` [T, 4] in 0..1.
        preset: the formula: "dino", "deformable_detr", "detr", "rt_detr", "d_fine" or "rf_detr".
        extra_cost: [G or 1, N, Q], added to the cost, in the order of the packed targets (masks, keypoints).
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.
        **formula: changes to the preset: `class_cost`, `weights`, `alpha`, `gamma`, `class_eps` (0: exact logarithms),
            `giou_eps` (added to the union and to the enclosing area).

    Returns:
        [G, N, Q] float32: row n is target n of the packed targets, and its columns are the queries of its image. If
        sets differ in Q, shorter rows are padded with infinity; rows of unused capacity are infinity.

    Raises:
        ValueError, TypeError: an argument is malformed.
        UnsupportedError: no backend, or not the requested one, can run the call.
    """
    return _op(prepare(logits, boxes, targets, preset=preset, extra_cost=extra_cost, **formula), backend)


def _fake(arguments: Arguments) -> Tensor:
    sets, queries = sizes_of(arguments.logits)
    return arguments.labels.new_empty((sets, arguments.labels.shape[0], queries), dtype=torch.float32)


_op = define_undifferentiable(backends, Arguments, COST_SCHEMA, "Tensor", fake=_fake)
