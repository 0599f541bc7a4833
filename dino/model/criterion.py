"""Losses of all predictions of a step: decoder layers, encoder, and denoising queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino.model.config import ModelConfig, model_config
from dino.model.matching import MatchCost, Matches, hungarian_match
from dino.model.outputs import DenoisingLayout, DetectionOutput
from dino.model.targets import Targets, pack, places
from dino_kernels.targets import PackedTargets

Losses = dict[str, Tensor]
ALPHA = 0.25
GAMMA = 2.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses, the same for every layer."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_xy", "loss_hw", "cardinality_error")


class SetCriterion(nn.Module):
    """Focal, L1 and GIoU loss of every prediction against the box that it is matched with.

    Args:
        config: the model that is trained.
        weights: of the losses in `weighted_total`.
        cost: of the matching.
    """

    def __init__(self, config: ModelConfig, weights: LossWeights | None = None, cost: MatchCost | None = None) -> None:
        super().__init__()
        self.config = config
        self.weights = weights or LossWeights()
        self.cost = cost or MatchCost()

    def forward(self, outputs: DetectionOutput, targets: Targets, num_boxes: float | None = None) -> Losses:
        """The unweighted losses.

        Args:
            outputs: of the model.
            targets: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].
            num_boxes: the normaliser, in place of the mean number of boxes per process.

        Returns:
            The official names: `loss_ce`, `loss_bbox`, `loss_giou` for the last layer, with `_0`, `_1`... for earlier
            ones, `_interm` for the encoder, `_dn`, `_dn_0`... for denoising; and, to look at only, without gradient,
            `loss_xy`, `loss_hw` and `cardinality_error` in the same places and `class_error`.
        """
        device = outputs.logits.device
        truth = pack(targets, device)
        normaliser = self._normaliser(len(truth), device) if num_boxes is None else max(num_boxes, 1.0)
        names = [f"_{layer}" for layer in range(len(outputs.logits) - 1)] + [""]
        losses = self._matching_losses(outputs, truth, normaliser, names)
        return losses | _denoising_losses(outputs, truth, normaliser, [f"_dn{name}" for name in names])

    def _matching_losses(
        self, outputs: DetectionOutput, truth: PackedTargets, normaliser: Tensor | float, names: list[str]
    ) -> Losses:
        all_logits, all_boxes = [outputs.logits], [outputs.boxes_cxcywh]
        if outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None:
            all_logits.append(outputs.encoder_logits[None])
            all_boxes.append(outputs.encoder_boxes_cxcywh[None])
            names = names + ["_interm"]
        matches = self.match(all_logits, all_boxes, truth)
        logits, boxes = (torch.cat([part.float() for part in parts]) for parts in (all_logits, all_boxes))
        final = len(outputs.logits) - 1
        return _named(set_losses(logits, boxes, matches, truth, normaliser), names) | {
            "class_error": class_error(logits[final], matches.image, matches.query[final], truth.labels)
        }

    def match(
        self, logits: Tensor | Sequence[Tensor], boxes_cxcywh: Tensor | Sequence[Tensor], targets: Targets
    ) -> Matches:
        """Hungarian matching of [sets, B, Q, C] logits and [sets, B, Q, 4] boxes, or lists of them, each set alone."""
        return hungarian_match(logits, boxes_cxcywh, targets, self.cost)

    def weighted_total(self, losses: Losses) -> Tensor:
        """The training loss: a weighted sum of all classification, L1 and GIoU losses, scalar."""
        weights = {"loss_ce": self.weights.classification, "loss_bbox": self.weights.l1, "loss_giou": self.weights.giou}
        terms = [
            weight * losses[name] for prefix, weight in weights.items() for name in losses if name.startswith(prefix)
        ]
        return torch.stack(terms).sum()

    @staticmethod
    def _normaliser(num_boxes: int, device: torch.device) -> Tensor:
        """Mean number of boxes per process, at least 1."""
        count = torch.full((), float(num_boxes), device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count /= torch.distributed.get_world_size()
        return count.clamp(min=1)


def _denoising_losses(
    outputs: DetectionOutput, truth: PackedTargets, normaliser: Tensor | float, names: list[str]
) -> Losses:
    """Of denoising queries, whose boxes are known without matching; zeros where there are none."""
    denoising = outputs.denoising
    if denoising is None or denoising.layout.num_queries == 0:
        return _named(dict.fromkeys(LOSSES, outputs.logits.new_zeros(len(names))), names)
    known = denoising_assignment(denoising.layout, truth, len(names))
    logits, boxes = denoising.logits.float(), denoising.boxes_cxcywh.float()
    return _named(set_losses(logits, boxes, known, truth, normaliser * denoising.layout.num_groups), names)


def _named(values: Losses, names: list[str]) -> Losses:
    """One scalar per set under its official name, from one vector over all sets."""
    return {f"{loss}{name}": v for loss, vector in values.items() for name, v in zip(names, vector, strict=True)}


def set_losses(
    logits: Tensor,  # [sets, B, Q, C]
    boxes_cxcywh: Tensor,  # [sets, B, Q, 4]
    matches: Matches,
    targets: PackedTargets,
    normaliser: Tensor | float,
) -> Losses:
    """All of `LOSSES` for several sets of predictions at once, each a vector [sets]; does not wait for the device."""
    assert targets.boxes_cxcywh is not None  # pack() refuses
    sets, images, queries, classes = logits.shape
    row = torch.arange(sets, device=logits.device).view(-1, *[1] * (matches.query.dim() - 1))
    place = (row, matches.image, matches.query)
    # A target without a query has the index -1, the last: in `one_hot` that is one query more, cut off again.
    one_hot = logits.new_zeros(sets, images, queries + 1, classes)
    one_hot[(*place, targets.labels)] = 1
    # In the boxes it is any query, whose loss times zero is zero, or NaN where the predictions are: that is to be seen.
    counted = (matches.query >= 0).to(boxes_cxcywh.dtype)
    predicted, wanted = boxes_cxcywh[place], targets.boxes_cxcywh  # [sets, ..., N, 4], [N, 4]
    l1 = (predicted - wanted).abs() * counted[..., None]
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
    return {
        "loss_ce": focal_loss(logits, one_hot[:, :, :queries]).sum((1, 2, 3)) / normaliser,
        "loss_bbox": l1.flatten(1).sum(1) / normaliser,
        "loss_giou": ((1 - giou) * counted).flatten(1).sum(1) / normaliser,
        "loss_xy": l1.detach()[..., :2].flatten(1).sum(1) / normaliser,
        "loss_hw": l1.detach()[..., 2:].flatten(1).sum(1) / normaliser,
        "cardinality_error": cardinality_error(logits, targets.offsets.diff()),
    }


def focal_loss(logits: Tensor, one_hot: Tensor) -> Tensor:
    """Sigmoid focal loss of every logit, alpha 0.25 and gamma 2 (arXiv 1708.02002)."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    confidence = probability * one_hot + (1 - probability) * (1 - one_hot)
    alpha = ALPHA * one_hot + (1 - ALPHA) * (1 - one_hot)
    return alpha * cross_entropy * (1 - confidence) ** GAMMA


def denoising_assignment(layout: DenoisingLayout, targets: PackedTargets, sets: int) -> Matches:
    """Positives stand for the boxes they were made of. Negatives and empty slots stay background."""
    image, within = places(targets)
    group = torch.arange(layout.num_groups, device=image.device)[:, None] * layout.kinds * layout.group_size
    return Matches(image, (group + within).expand(sets, -1, -1))


@torch.no_grad()
def cardinality_error(logits: Tensor, counts: Tensor) -> Tensor:
    """Official logging value, [sets]: mean absolute difference of box counts, where "no object" is the last class."""
    predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    return (predicted - counts).abs().float().mean(1)


@torch.no_grad()
def class_error(
    logits: Tensor,  # [B, Q, C]
    image: Tensor,  # [N]
    query: Tensor,  # [N], -1 where none
    labels: Tensor,  # [N]
) -> Tensor:
    """Share of matched queries whose best class is wrong, in percent; 100 where there are none."""
    matched = query >= 0
    wrong = (logits[image, query].argmax(-1) != labels) & matched
    share = 100 * wrong.sum() / matched.sum()
    return share.where(matched.any(), 100.0).to(logits.dtype)


def build_criterion(
    preset: str | ModelConfig,
    *,
    weights: LossWeights | None = None,
    cost: MatchCost | None = None,
    **overrides: object,
) -> SetCriterion:
    """The losses that train a model of the same preset and overrides; see `dino.build_model`."""
    return SetCriterion(model_config(preset, **overrides), weights, cost)
