"""The definition of `matching_cost`, in plain PyTorch, one image after the other."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments
from dino_kernels.ops._core.arguments import MatchingCostArguments as Arguments

NONFINITE_PREDICTION, INVALID_TARGET = 1, 2


def forward(arguments: Arguments) -> Tensor:
    """Return the cost of every target with every query of its image, [G, N, Q] float32."""
    return cost_and_status(arguments)[0]


def cost_and_status(
    arguments: Arguments | HungarianMatchArguments, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the cost computed in `dtype`, and the status of each problem, [G, B] int32."""
    logits, boxes, labels, target_boxes, offsets, extra_cost, _, class_cost, formula, *_ = arguments
    sets, queries = sum(len(source) for source in logits), max(source.shape[2] for source in logits)
    starts = offsets.tolist()
    cost = torch.full((sets, len(labels), queries), torch.inf, dtype=dtype, device=labels.device)
    status = torch.zeros(sets, len(starts) - 1, dtype=torch.int32, device=labels.device)
    first = 0
    for number, source in enumerate(logits):
        some = slice(first, first + len(source))
        for image, (start, end) in enumerate(itertools.pairwise(starts)):
            of_image = slice(start, end)
            truth = None if target_boxes is None else target_boxes[of_image]
            predicted = boxes[number][:, image].to(dtype) if boxes else None
            pairs, queries_ok, targets_ok = _image_cost(
                source[:, image].to(dtype), predicted, labels[of_image], truth, class_cost, formula
            )
            if extra_cost is not None:
                extra = extra_cost[some if len(extra_cost) == sets else slice(None), of_image, : source.shape[2]]
                pairs = pairs + extra.to(dtype)
            allowed = queries_ok[:, None] & targets_ok[:, None]
            cost[some, of_image, : source.shape[2]] = pairs.masked_fill(~allowed, torch.inf)
            status[some, image] |= NONFINITE_PREDICTION * (~queries_ok).any(-1).int()
            status[some, image] |= INVALID_TARGET * (~targets_ok).any().int()
        first += len(source)
    return cost, status


def _image_cost(
    logits: Tensor,  # [G, Q, C]
    boxes: Tensor | None,  # [G, Q, 4]
    labels: Tensor,  # [T]
    target_boxes: Tensor | None,  # [T, 4]
    class_cost: str,
    formula: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs [G, T, Q], and whether each query [G, Q] and each target [T] may be matched."""
    class_weight, l1_weight, giou_weight, alpha, gamma, class_eps, giou_eps = formula
    targets_ok = (labels >= 0) & (labels < logits.shape[-1])
    if target_boxes is not None:
        targets_ok &= target_boxes.isfinite().all(-1) & (target_boxes[:, 2:] >= 0).all(-1)
    labels = labels.where(targets_ok, 0)
    # Logits of the targets' labels; any finite number for invalid targets.
    if class_cost == "focal":
        chosen = logits[:, :, labels].transpose(1, 2)  # [G, T, Q]
        chosen = chosen.masked_fill(~targets_ok[:, None], 0)
        class_part = focal_cost(chosen, alpha, gamma, class_eps)
    else:
        chosen = logits.softmax(-1)[:, :, labels].transpose(1, 2).masked_fill(~targets_ok[:, None], 0)
        class_part = -chosen
    queries_ok = chosen.isfinite().all(1)
    cost = class_weight * class_part
    if boxes is not None and target_boxes is not None:
        if len(labels) > 0 and targets_ok.any():
            queries_ok &= boxes.isfinite().all(-1)
        l1 = (boxes[:, None] - target_boxes[:, None].to(boxes.dtype)).abs().sum(-1)
        cost = cost + l1_weight * l1 - giou_weight * generalized_iou(boxes[:, None], target_boxes[:, None], giou_eps)
    return cost, queries_ok, targets_ok


def focal_cost(logits: Tensor, alpha: float, gamma: float, eps: float) -> Tensor:
    """Return the focal loss of the class as positive minus as negative (arXiv 1708.02002, as in Deformable DETR)."""
    probability, opposite = logits.sigmoid(), (-logits).sigmoid()
    if eps > 0:
        positive, negative = -(probability + eps).log(), -(opposite + eps).log()
    else:
        positive, negative = F.softplus(-logits), F.softplus(logits)
    return alpha * opposite**gamma * positive - (1 - alpha) * probability**gamma * negative


def generalized_iou(boxes_cxcywh: Tensor, other_cxcywh: Tensor, eps: float) -> Tensor:
    """Return the generalised IoU (arXiv 1902.09630), with `eps` added to the union and to the enclosing area."""
    (low, high), (other_low, other_high) = _corners(boxes_cxcywh), _corners(other_cxcywh.to(boxes_cxcywh.dtype))
    intersection = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - intersection
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def _corners(boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    center, size = boxes_cxcywh.split(2, -1)
    return center - size / 2, center + size / 2
