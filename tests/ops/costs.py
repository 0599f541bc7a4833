"""The costs of matching pair by pair, in float64 and with Python's own functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._matching import PRESETS, CostFormula
from dino_kernels.testing import MatchingCase, assert_same_bits

SLOW = ("emulated", "interpreted")
CASE = MatchingCase("usual", 2, 24, 7, (5, 0, 3))
NAN, INF = float("nan"), float("inf")
FORMULAS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in PRESETS},
    "gamma_1.5": {"gamma": 1.5},
    "gamma_0": {"gamma": 0.0},
    "gamma_1_exact": {"gamma": 1.0, "class_eps": 0.0},
    "gamma_0.5_exact": {"gamma": 0.5, "class_eps": 0.0},
    "alpha_0.9": {"alpha": 0.9},
    "large_eps": {"class_eps": 1e-3, "giou_eps": 1e-2},
    "only_classes": {"weights": (1.0, 0.0, 0.0)},
    "only_l1": {"weights": (0.0, 1.0, 0.0)},
    "only_giou": {"weights": (0.0, 0.0, 1.0)},
    "softmax_only_classes": {"class_cost": "softmax", "weights": (1.0, 0.0, 0.0)},
    "negative_weights": {"weights": (-1.0, 3.0, -2.0)},
}


def named_formula(options: dict[str, Any]) -> CostFormula:
    options = dict(options)
    return replace(PRESETS[options.pop("preset", "dino")], **options)


def sized(case: MatchingCase, backend: str) -> MatchingCase:
    return case.small() if backend in SLOW else case


def assert_same_cost(cost: Tensor, expected: Tensor) -> None:
    assert_same_bits([cost], [expected], ["cost"])


def formula_cost(inputs: dict[str, Any], formula: CostFormula) -> Tensor:
    """The formula in float64, pair by pair, with Python's own functions. Every query and target has to be valid."""
    logits, boxes, targets = inputs["logits"].double().cpu(), inputs["boxes"].double().cpu(), inputs["targets"]
    labels, offsets = targets.labels.tolist(), targets.offsets.tolist()
    truth = targets.boxes_cxcywh.double().tolist()
    sets, images, queries, _ = logits.shape
    cost = torch.full((sets, len(labels), queries), INF, dtype=torch.float64)
    for g in range(sets):
        for b in range(images):
            rows = logits[g, b].tolist()
            for q, box in enumerate(boxes[g, b].tolist()):
                for n in range(offsets[b], offsets[b + 1]):
                    l1 = sum(abs(x - y) for x, y in zip(box, truth[n], strict=True))
                    class_part = class_cost(rows[q], labels[n], formula)
                    giou = generalized_iou(box, truth[n], formula.giou_eps)
                    weights = formula.weights
                    cost[g, n, q] = weights[0] * class_part + weights[1] * l1 - weights[2] * giou
    return cost


def class_cost(logits: list[float], label: int, formula: CostFormula) -> float:
    if formula.class_cost == "softmax":
        top = max(logits)
        return -math.exp(logits[label] - top) / sum(math.exp(logit - top) for logit in logits)
    probability, opposite = (1 / (1 + math.exp(sign * logits[label])) for sign in (-1, 1))
    positive, negative = (
        -math.log(x + formula.class_eps) if formula.class_eps else math.log1p(other / x)
        for x, other in ((probability, opposite), (opposite, probability))
    )
    positive *= formula.alpha * opposite**formula.gamma
    return positive - (1 - formula.alpha) * probability**formula.gamma * negative


def generalized_iou(box: list[float], other: list[float], eps: float) -> float:
    (left, top, right, bottom), (left_, top_, right_, bottom_) = corners(box), corners(other)
    width, height = min(right, right_) - max(left, left_), min(bottom, bottom_) - max(top, top_)
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (right - left) * (bottom - top) + (right_ - left_) * (bottom_ - top_) - intersection
    hull = max(max(right, right_) - min(left, left_), 0.0) * max(max(bottom, bottom_) - min(top, top_), 0.0)
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
