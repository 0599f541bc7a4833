"""Hungarian matching of predictions with ground truth, one to one (DETR, with focal class cost)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dino.boxes import cxcywh_to_xyxy, generalized_iou
from dino.denoising import Targets

ALPHA = 0.25
GAMMA = 2.0


@dataclass(frozen=True)
class MatchCost:
    """Weights of the three parts of the cost."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass
class Matches:
    """Which query stands for which box, in several sets of predictions. The rest of an image's queries are background.

    Each set has the same number R of pairs.
    """

    image: Tensor  # [R] index of the image
    query: Tensor  # [sets, R] index of the query in its image
    target: Tensor  # [sets, R] index of the box in the concatenation of all images' boxes

    def per_image(self, targets: Targets) -> list[list[tuple[Tensor, Tensor]]]:
        """For each set, per image the pairs (query [R_b], target within the image [R_b])."""
        matched = torch.bincount(self.image, minlength=len(targets)).tolist()
        start, sets = 0, [[] for _ in self.query]
        for queries, ids, pairs in zip(self.query, self.target, sets, strict=True):
            start = 0
            for target, q, t in zip(targets, queries.split(matched), ids.split(matched), strict=True):
                pairs.append((q, t - start))
                start += len(target["labels"])
        return sets


@torch.no_grad()
def hungarian_match(
    logits: Tensor,  # [sets, B, Q, C]
    boxes_cxcywh: Tensor,  # [sets, B, Q, 4]
    targets: Targets,
    cost: MatchCost = MatchCost(),
) -> Matches:
    """The assignment of least cost, for each set of predictions and each image alone.

    Predictions that are not finite cost much and do not raise, so that the loss shows them.
    """
    queries, ids, images = [], [], []
    start = 0
    for image, target in enumerate(targets):
        matrix = matching_cost(logits[:, image], boxes_cxcywh[:, image], target, cost).cpu()
        pairs = [linear_sum_assignment(m) for m in matrix.nan_to_num(1e6, 1e6, -1e6)]
        queries.append(torch.stack([torch.as_tensor(rows) for rows, _ in pairs]))
        ids.append(torch.stack([torch.as_tensor(columns) for _, columns in pairs]) + start)
        images.append(torch.full_like(queries[-1][0], image))
        start += len(target["labels"])
    device = logits.device
    return Matches(torch.cat(images).to(device), torch.cat(queries, 1).to(device), torch.cat(ids, 1).to(device))


def matching_cost(
    logits: Tensor,  # [sets, Q, C] of one image
    boxes_cxcywh: Tensor,  # [sets, Q, 4]
    target: dict[str, Tensor],
    cost: MatchCost,
) -> Tensor:
    """Cost of every pair of query and target: focal, L1 and -GIoU, weighted; [sets, Q, T] float32."""
    probability = logits.float().sigmoid()[..., target["labels"]]
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
    predicted, truth = boxes_cxcywh.float(), target["boxes"].to(boxes_cxcywh.device).float()
    l1 = torch.cdist(predicted, truth.expand(len(predicted), -1, -1), p=1)
    giou = generalized_iou(cxcywh_to_xyxy(predicted)[:, :, None], cxcywh_to_xyxy(truth))
    return cost.classification * (positive - negative) + cost.l1 * l1 - cost.giou * giou
