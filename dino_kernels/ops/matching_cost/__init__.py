"""Cost of matching every target with every query of its image."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._matching import (
    COST_SCHEMA,
    CostArguments,
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
) -> CostArguments:
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
    """Cost of every target with every query of its image, for several sets of predictions at once.

    `weights[0] * class cost + weights[1] * L1 - weights[2] * GIoU` (DETR, arXiv 2005.12872, equation 1 and appendix
    A.2), with L1 of (cx, cy, w, h) and GIoU of corners. The class cost of probability p is

    - "focal": `alpha (1 - p)^gamma (-log(p + class_eps)) - (1 - alpha) p^gamma (-log(1 - p + class_eps))`, p = sigmoid;
    - "softmax": `-p`, p = softmax.

    Only pairs of one image are computed, in float32 whatever the dtype. A pair that must not be matched costs infinity:
    with a query whose box, or a logit that its cost needs, is not finite (softmax: -inf is allowed), or with a target
    whose label is no class, or whose box is not finite or of negative size. The result has no gradient.

    Args:
        logits: of all sets: every decoder layer, the encoder, groups. Sets in a list need no stacking copy, and may
            differ in Q.
        boxes: of all sets, in any unit that targets have too; None where the weights of L1 and GIoU are 0.
        targets: `PackedTargets`, or per image a dictionary with `labels` [T] and `boxes` [T, 4].
        preset: "dino", "deformable_detr", "detr", "rt_detr", "d_fine" or "rf_detr": the formula.
        extra_cost: [G or 1, N, Q], added to the cost, in the order of the packed targets (masks, keypoints).
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.
        **formula: what differs from the preset: `class_cost`, `weights`, `alpha`, `gamma`, `class_eps` (0: exact
            logarithms), `giou_eps` (added to the union and to the enclosing area).

    Returns:
        [G, N, Q] float32: row n is target n of the packed targets, and its columns are the queries of its image. Where
        sets differ in Q, shorter rows end in infinity; so do the rows of unused capacity, whole.

    Raises:
        ValueError, TypeError: a malformed argument, named.
        UnsupportedError: no backend can run the call, or not the requested one.
    """
    return _op(prepare(logits, boxes, targets, preset=preset, extra_cost=extra_cost, **formula), backend)


def _fake(arguments: CostArguments) -> Tensor:
    sets, queries = sizes_of(arguments.logits)
    return arguments.labels.new_empty((sets, arguments.labels.shape[0], queries), dtype=torch.float32)


_op = define_undifferentiable(backends, CostArguments, COST_SCHEMA, "Tensor", fake=_fake)
