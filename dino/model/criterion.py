"""Matching and losses of all predictions of a step: decoder layers, encoder and denoising queries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

import dino_kernels
from dino.model.boxes import cxcywh_to_xyxy, iou_and_giou
from dino.model.config import ModelConfig, model_config
from dino.model.losses import KINDS, NUM_TRAINED, Losses
from dino.model.outputs import DenoisingOutput, DetectionOutput
from dino.model.successors.classification import Pairs, classification_loss, pair_targets
from dino.model.successors.match_cost import position_class_cost
from dino.model.successors.mixed_matching import rank_weights
from dino.model.successors.multi_route import BOXES, MOST, assign_one_to_many
from dino.model.successors.one_to_many import copies_cost, repeat_rows, repeat_targets
from dino.model.targets import Targets, pack
from dino_kernels.targets import PackedTargets

ALPHA = 0.25
GAMMA = 2.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses, the same for every layer."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    denoising_classification: float | None = None
    """Of denoising queries; None: as `classification`."""


@dataclass(frozen=True)
class MatchCost:
    """Weights of the three parts of the matching cost."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class SetCriterion(nn.Module):
    """Classification, L1 and GIoU loss of every prediction against its matched box.

    Args:
        config: of the model to train; its number of classes must be that of the logits.
        weights: of the losses in `weighted_total`; by default the configuration's.
        cost: of the matching.
    """

    weights: Tensor  # [KINDS, 1], or [KINDS, 2] if those of denoising differ

    def __init__(self, config: ModelConfig, weights: LossWeights | None = None, cost: MatchCost | None = None) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.num_layers = config.num_decoder_layers
        self.classification = config.classification
        self.match_cost = config.match_cost
        self.mixed_matching = config.mixed_matching
        self.hybrid_copies = config.hybrid_copies
        self.num_hybrid = config.num_decoder_layers + 1 if config.hybrid_queries > 0 else 0
        of_routes = 2 * config.num_decoder_layers + (config.query_selection != "static")
        self.num_routes = of_routes if config.multi_route else 0
        self.cost = cost or MatchCost()
        weights = weights or LossWeights(config.class_weight, denoising_classification=1.0)
        denoising = weights.denoising_classification
        differs = denoising is not None and denoising != weights.classification
        classes = [weights.classification, denoising] if differs else [weights.classification]
        columns = [[each, weights.l1, weights.giou, *[0.0] * (len(KINDS) - NUM_TRAINED)] for each in classes]
        self.register_buffer("weights", torch.tensor(columns, dtype=torch.float32).T.contiguous(), persistent=False)

    def forward(self, outputs: DetectionOutput, targets: Targets, num_boxes: float | Tensor | None = None) -> Losses:
        """Return the unweighted losses, without synchronising.

        Args:
            outputs: of the model.
            targets: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].
            num_boxes: the normaliser, raised to 1 if smaller; by default the mean number of boxes per process.

        Raises:
            ValueError, TypeError: logits of another number of classes than the configuration's; malformed targets.
        """
        if outputs.logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"outputs.logits must have num_classes = {self.num_classes} classes as the criterion's configuration, "
                f"got {outputs.logits.shape[-1]}. Use dino.build_criterion(model.config)."
            )
        truth = pack(targets, outputs.logits.device, self.num_classes)
        if num_boxes is None:
            num_boxes = mean_boxes(len(truth) if truth.counts is not None else truth.offsets[-1], outputs.logits.device)
        normaliser = num_boxes.clamp(min=1) if isinstance(num_boxes, Tensor) else max(num_boxes, 1.0)
        layers = len(outputs.logits)

        branches = self._branches(outputs, normaliser)
        copies = [number for branch in branches for number in branch.copies]
        copies = copies if max(copies) > 1 else []
        all_logits = [source for branch in branches for source in branch.logits]
        all_boxes = [source for branch in branches for source in branch.boxes_cxcywh]
        query = self.match(all_logits, all_boxes, truth, copies)
        most = max(copies, default=1)
        image = truth.image_of_each()
        if truth.counts is None:
            image = image.clamp(max=truth.num_images - 1)  # unused rows of a capacity, which have no query
        parts, start = [], 0
        for branch in branches:
            predicted = torch.cat(branch.logits), torch.cat(branch.boxes_cxcywh)
            some = query[start : start + len(predicted[0])]
            parts.append(matched_predictions(*predicted, some, image, branch.normaliser, most))
            start += len(some)
        if self.mixed_matching > 1:
            parts[0] = replace(parts[0], ranked=most)
        if outputs.routes:
            logits = torch.cat([route.logits for route in outputs.routes])
            boxes = torch.cat([route.boxes_cxcywh for route in outputs.routes])
            some = assign_one_to_many(logits, boxes, truth)
            parts.append(matched_predictions(logits, boxes, some, image, normaliser * BOXES, MOST))
        sets, denoised = sum(len(part.logits) for part in parts), (outputs, *outputs.routes)
        parts += [
            denoising_predictions(each.denoising, normaliser)
            for each in denoised
            if each.denoising is not None and each.denoising.layout.num_queries > 0
        ]
        table, best = set_losses(parts, truth, self.classification)
        if table.shape[1] == sets:
            table = torch.cat([table, table.new_zeros(len(KINDS), layers * len(denoised))], 1)
        last = best[: parts[0].logits.shape[:3].numel()].view(parts[0].logits.shape[:3])[layers - 1]
        error = class_error(last, image, query[layers - 1, ::most], truth.labels)
        hybrid = 0 if outputs.hybrid is None else len(branches[1].copies)
        return Losses(table, error, layers, hybrid, sets - hybrid - len(branches[0].copies))

    def _branches(self, outputs: DetectionOutput, normaliser: Tensor | float) -> list[_Branch]:
        """Return the sets of predictions that are matched by the Hungarian matching."""
        sources = _sets_of(outputs)
        encoder = [self.mixed_matching] * (len(sources[0]) - 1)
        decoder = [self.mixed_matching] * (len(outputs.logits) - 1) + [1]
        branches = [_Branch(*sources, normaliser, [*decoder, *encoder])]
        if outputs.hybrid is not None:
            sources = _sets_of(outputs.hybrid)
            copies = [self.hybrid_copies for source in sources[0] for _ in source]
            branches.append(_Branch(*sources, normaliser * self.hybrid_copies, copies))
        if outputs.routes and outputs.routes[-1].encoder_logits is not None:
            logits, boxes = _sets_of(outputs.routes[-1])
            branches.append(_Branch(logits[1:], boxes[1:], normaliser, [1]))
        return branches

    def match(
        self,
        logits: Tensor | Sequence[Tensor],
        boxes_cxcywh: Tensor | Sequence[Tensor],
        targets: PackedTargets,
        copies: Sequence[int] = (),
    ) -> Tensor:
        """Return the assignment of least cost, for each set of predictions and each image alone (DETR).

        Predictions that are not finite are not matched: the loss shows them.

        Args:
            logits: [sets, B, Q, C], or a list of these.
            boxes_cxcywh: [sets, B, Q, 4], or a list of these.
            targets: N boxes.
            copies: number of queries to match each box with, per set; () is one for all.

        Returns:
            [sets, N]: each box's query, -1 where it has none; [sets, N * max(copies)]: its queries in succession.
        """
        weights = (self.cost.classification, self.cost.l1, self.cost.giou)
        extra = None
        sources = [[each] if isinstance(each, Tensor) else each for each in (logits, boxes_cxcywh)]
        if self.match_cost == "position":
            extra = weights[0] * position_class_cost(sources[0], sources[1], targets)
            weights = (0.0, *weights[1:])
        if copies:
            extra = copies_cost(copies, [each.shape[2] for each in sources[0] for _ in each], targets, extra)
            targets = repeat_targets(targets, max(copies))
        return dino_kernels.hungarian_match(
            logits, boxes_cxcywh, targets, preset="dino", weights=weights, extra_cost=extra
        ).query_idx

    def weighted(self, losses: Losses) -> Tensor:
        """Return the weighted sum of each set's classification, L1 and GIoU loss, [sets]."""
        weights = self.weights.to(losses.table.device, non_blocking=True)
        if weights.shape[1] > 1:
            sets = (losses.first_denoising, losses.table.shape[1] - losses.first_denoising)
            weights = torch.cat(
                [each.expand(-1, size) for each, size in zip(weights.split(1, 1), sets, strict=True)], 1
            )
        # Kinds of weight zero are finite if the trained ones are, so they add nothing.
        return (weights * losses.table).sum(0)

    def weighted_total(self, losses: Losses) -> Tensor:
        """Return the training loss, a scalar: the weighted sum of all classification, L1 and GIoU losses."""
        return self.weighted(losses).sum()


def mean_boxes(count: float | Tensor, device: torch.device) -> Tensor:
    """Return the mean over processes of their number of boxes, a scalar on the device. Collective."""
    mean = torch.full((), count, dtype=torch.float32, device=device) if not isinstance(count, Tensor) else count.float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean


@dataclass(frozen=True)
class Predictions:
    """Sets of predictions with equally many queries, and pairs of a query and the target that it should find."""

    logits: Tensor  # [sets, B, Q, C]
    boxes_cxcywh: Tensor  # [sets, B, Q, 4]
    row: Tensor  # [sets, P] query among all of these sets; any where the pair does not exist
    target: Tensor  # [P] packed target; any where the pair does not exist
    exists: Tensor  # [sets, P] bool
    normaliser: Tensor | float
    counted: Tensor | None = None  # [Q] bool: queries with a loss; None: all
    ranked: int = 1  # pairs in succession that have one target, and less weight the worse they fit


class _Branch(NamedTuple):
    """Sets of predictions that are matched and normalised together."""

    logits: list[Tensor]  # each [sets, B, Q, C]
    boxes_cxcywh: list[Tensor]  # each [sets, B, Q, 4]
    normaliser: Tensor | float
    copies: list[int]  # of each set: the number of queries that a box is matched with


def _sets_of(outputs: DetectionOutput) -> tuple[list[Tensor], list[Tensor]]:
    """Return logits and boxes of the decoder layers, and of the encoder if it predicts, each [sets, B, Q, ...]."""
    logits, boxes = [outputs.logits], [outputs.boxes_cxcywh]
    if outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None:
        logits.append(outputs.encoder_logits[None])
        boxes.append(outputs.encoder_boxes_cxcywh[None])
    return logits, boxes


def matched_predictions(
    logits: Tensor,  # [sets, B, Q, C]
    boxes_cxcywh: Tensor,  # [sets, B, Q, 4]
    query: Tensor,  # [sets, N * copies] of each target, -1 where none
    image: Tensor,  # [N] of each target
    normaliser: Tensor | float,
    copies: int = 1,
) -> Predictions:
    """Return predictions that were matched with all targets. A target without a query has the first of its image."""
    sets, images, queries = logits.shape[:3]
    target = torch.arange(len(image), device=image.device)
    if copies > 1:
        image, target = repeat_rows(image, copies), repeat_rows(target, copies)
    first = torch.arange(0, sets * images * queries, images * queries, device=image.device)[:, None] + image * queries
    return Predictions(logits, boxes_cxcywh, first + query.clamp(min=0), target, query >= 0, normaliser)


def denoising_predictions(denoising: DenoisingOutput, normaliser: Tensor | float) -> Predictions:
    """Return the predictions of denoising: positives with the box they are made of, all other slots as background."""
    logits, target = denoising.logits, denoising.target.flatten()
    row = torch.arange(logits.shape[:3].numel(), device=target.device).view(len(logits), -1)
    scale = normaliser * denoising.layout.num_groups
    exists = (target >= 0).expand_as(row)
    return Predictions(
        logits, denoising.boxes_cxcywh, row, target.clamp(min=0), exists, scale, counted=denoising.in_group
    )


def set_losses(
    parts: Sequence[Predictions], targets: PackedTargets, classification: str = "focal"
) -> tuple[Tensor, Tensor]:
    """Return the losses of all sets of predictions, with unmatched queries as background.

    All parts are laid end to end: the number of operations does not depend on how many there are.

    Args:
        parts: predictions and their pairs.
        targets: what the pairs refer to.
        classification: "focal", or a loss of `dino.model.successors.classification`.

    Returns:
        The losses [KINDS, sets], and the best class of each prediction [R].
    """
    assert targets.boxes_cxcywh is not None  # pack() refuses
    logits = torch.cat([part.logits.flatten(0, 2) for part in parts]).float()  # [R, C]
    boxes = torch.cat([part.boxes_cxcywh.flatten(0, 2) for part in parts]).float()
    queries, sizes = [part.logits.shape[:3].numel() for part in parts], [part.row.numel() for part in parts]
    first = [0, *itertools.accumulate(queries[:-1])]
    # All pairs [P'], those that do not exist too: they count zero times, and are NaN if their query is.
    rows = torch.cat(
        [(part.row + start if start else part.row).flatten() for part, start in zip(parts, first, strict=True)]
    )
    exists = torch.cat([part.exists.flatten() for part in parts])
    target = torch.cat([part.target.expand_as(part.row).flatten() for part in parts])

    predicted, true, counted = boxes[rows], targets.boxes_cxcywh[target], exists.to(boxes.dtype)
    iou, overlap = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
    labels = targets.labels[target]
    if classification == "focal":
        one_hot = logits.new_zeros(len(logits) + 1, logits.shape[1])
        # Those in the last row are cut off. Assigning the number 1 would copy it from the host, and wait for that.
        one_hot[rows.where(exists, len(logits)), labels] = counted
        of_logits = focal_loss(logits, one_hot[:-1])
    else:
        pairs = Pairs(rows, labels, iou.detach(), exists, *images_of_pairs(parts))
        scores = pair_targets(classification, logits, pairs)
        if any(part.ranked > 1 for part in parts):
            weights = [
                rank_weights(of_part.view_as(part.row), part.exists, part.ranked).flatten()
                for part, of_part in zip(parts, scores.split(sizes), strict=True)
            ]
            scores, counted = scores * torch.cat(weights), counted * torch.cat(weights)
        of_logits = classification_loss(classification, logits, scores, pairs)
    distance = (predicted - true).abs() * counted[..., None]
    of_pairs = torch.stack([distance[..., :2].sum(-1), distance[..., 2:].sum(-1), (1 - overlap) * counted])
    best = logits.argmax(1)
    objects = (best != logits.shape[1] - 1)[None]

    tables, found = [], []
    for part, of_queries, of_targets, object_ in zip(
        parts, of_logits.split(queries), of_pairs.split(sizes, 1), objects.split(queries, 1), strict=True
    ):
        of_queries, object_ = of_queries.view_as(part.logits), object_.view(*part.logits.shape[:3])
        if part.counted is not None:
            of_queries, object_ = of_queries.masked_fill(~part.counted[:, None], 0), object_ & part.counted
        sums = [of_queries.flatten(1).sum(1)[None], of_targets.unflatten(1, (len(part.logits), -1)).sum(2)]
        tables.append(torch.cat(sums) / part.normaliser)
        found.append(object_.sum(2))
    classes, center, size, giou = torch.cat(tables, 1)
    # The official metric: mean absolute error of box counts, where "no object" is the last class.
    cardinality = (torch.cat(found) - targets.offsets.diff()).abs().mean(1, dtype=torch.float32)
    kinds = [classes, center + size, giou, center.detach(), size.detach(), cardinality]
    return torch.stack(kinds), best


def images_of_pairs(parts: Sequence[Predictions]) -> tuple[Tensor, int]:
    """Return the image of each pair, counted over all sets of all parts, [P'], and the number of these images."""
    sizes = [part.logits.shape[0] * part.logits.shape[1] for part in parts]
    first = [0, *itertools.accumulate(sizes[:-1])]
    images = [(part.row // part.logits.shape[2] + start).flatten() for part, start in zip(parts, first, strict=True)]
    return torch.cat(images), sum(sizes)


def focal_loss(logits: Tensor, one_hot: Tensor) -> Tensor:
    """Return the sigmoid focal loss of every logit, alpha 0.25 and gamma 2 (arXiv 1708.02002)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    alpha = (2 * ALPHA - 1) * one_hot + (1 - ALPHA)
    return alpha * cross_entropy * (logits.sigmoid() - one_hot) ** GAMMA


@torch.no_grad()
def class_error(
    best: Tensor,  # [B, Q] most probable class
    image: Tensor,  # [N]
    query: Tensor,  # [N], -1 where none
    labels: Tensor,  # [N]
) -> Tensor:
    """Return the share of matched queries whose best class is wrong, in percent; 100 where none is matched."""
    matched = query >= 0
    wrong = (best[image, query] != labels) & matched
    return (100 * wrong.sum() / matched.sum()).nan_to_num(100.0).float()


def build_criterion(preset: str | ModelConfig, **overrides: object) -> SetCriterion:
    """Return the criterion of a model of the same preset and overrides; see `dino.build_model`."""
    return SetCriterion(model_config(preset, **overrides))
