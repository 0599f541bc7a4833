"""The matchers of DETR's family as their papers have them: one image, every pair, SciPy."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dino_kernels.nn import HungarianMatcher

Outputs = dict[str, Tensor]
Target = dict[str, Tensor]
Pairs = list[tuple[Tensor, Tensor]]
COUNTS = (3, 0, 7, 1)
BOXES = ("dino", "deformable_detr", "detr", "rt_detr", "d_fine", "rf_detr")
WEIGHTS = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def predictions(images: int, queries: int, *, seed: int = 0, masks: bool = False, classes: int = 11) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(images, queries, classes, generator=generator) * 2 - 2,
        "pred_boxes": torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.2,
    }
    if masks:
        outputs["pred_masks"] = torch.randn(images, queries, 12, 16, generator=generator) * 3
    return outputs


def ground_truth(*counts: int, label: str = "labels", masks: bool = False, classes: int = 10) -> list[Target]:
    generator = torch.Generator().manual_seed(sum(counts))
    targets = []
    for count in counts:
        target = {
            label: torch.randint(classes, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        if masks:
            target["masks"] = torch.rand(count, 24, 32, generator=generator) > 0.6
        targets.append(target)
    return targets


def assert_same(actual: Any, expected: Pairs) -> None:
    assert isinstance(actual, list) and len(actual) == len(expected)
    for (query, target), (wanted_query, wanted_target) in zip(actual, expected, strict=True):
        assert query.dtype == target.dtype == torch.int64 and query.device.type == "cpu"
        assert query.tolist() == wanted_query.tolist()
        assert target.tolist() == wanted_target.tolist()


def matcher(preset: str, **options: Any) -> HungarianMatcher:
    by_dictionary = preset in ("rt_detr", "d_fine")
    weights = {"weight_dict": WEIGHTS, "use_focal_loss": True} if by_dictionary else WEIGHTS
    return HungarianMatcher(**{"preset": preset, **weights, **options})


def matched(found: Any, preset: str) -> Pairs:
    """The pairs in what `forward` returned."""
    assert isinstance(found, dict) == (preset == "d_fine")
    return found["indices"] if preset == "d_fine" else found


def broken_predictions() -> Outputs:
    outputs = predictions(2, 10)
    outputs["pred_logits"][0, 3] = math.nan
    outputs["pred_boxes"][0, 4] = math.inf
    return outputs


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    return (positive - negative)[:, labels]


def logsigmoid_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -F.logsigmoid(-logits)
    positive = alpha * (1 - p) ** gamma * -F.logsigmoid(logits)
    return (positive - negative)[:, labels]


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.softmax(-1)[:, labels]


def giou_cost(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    (low, high), (other_low, other_high) = (
        (x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2) for x in (boxes[:, None], others[None])
    )
    inside = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - inside
    return -(inside / (union + eps) - (around - union) / (around + eps))


CLASS_COSTS = {"detr": softmax_cost, "rf_detr": logsigmoid_cost}


def original(preset: str, outputs: Outputs, targets: list[Target], class_cost: Any = None, **options: Any) -> Pairs:
    """The matcher of a family, for weights 2, 5, 2."""
    class_cost = class_cost or CLASS_COSTS.get(preset, focal_cost)
    pairs = []
    for logits, boxes, target in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
        cost = 2 * class_cost(logits.double(), target["labels"], **options)
        cost = cost + 5 * torch.cdist(boxes.double(), target["boxes"].double(), p=1)
        cost = cost + 2 * giou_cost(boxes.double(), target["boxes"].double(), 1e-6 if preset == "dino" else 0.0)
        query, index = linear_sum_assignment(cost)
        pairs.append((torch.as_tensor(query), torch.as_tensor(index)))
    return pairs


def mask2former(outputs: Outputs, targets: list[Target], points: int, weights: tuple[float, float, float]) -> Pairs:
    """Mask2Former's: points are drawn image after image, and shared by all masks of an image."""
    pairs = []
    for logits, masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True):
        where = 2 * torch.rand(1, points, 2) - 1

        def sampled(masks: Tensor, where: Tensor = where) -> Tensor:
            grid = where[:, :, None].repeat(len(masks), 1, 1, 1)
            return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]

        x, y = sampled(masks), sampled(target["masks"].to(masks))
        as_one = F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
        as_zero = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
        mask_cost = (torch.einsum("qp,tp->qt", as_one, y) + torch.einsum("qp,tp->qt", as_zero, 1 - y)) / points
        p = x.sigmoid()
        dice_cost = 1 - (2 * torch.einsum("qp,tp->qt", p, y) + 1) / (p.sum(-1)[:, None] + y.sum(-1) + 1)
        cost = weights[0] * softmax_cost(logits, target["labels"]) + weights[1] * mask_cost + weights[2] * dice_cost
        query, index = linear_sum_assignment(cost)
        pairs.append((torch.as_tensor(query), torch.as_tensor(index)))
    return pairs
