"""Hungarian matching of predictions with ground truth, one to one (DETR, with focal class cost)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import dino_kernels
from dino.model.targets import Targets, pack


@dataclass(frozen=True)
class MatchCost:
    """Weights of the three parts of the cost."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass
class Matches:
    """Which query stands for which box, in several sets of predictions. The rest of an image's queries are background.

    In the order of the N packed targets, so that these need no gather.
    """

    image: Tensor  # [N] index of the target's image
    query: Tensor  # [sets, N], or [sets, groups, N] where each target has several: index in its image, -1 where none

    def per_image(self, targets: Targets) -> list[list[tuple[Tensor, Tensor]]]:
        """For each set, per image the pairs (query [R], target within the image [R]); waits for the device."""
        return dino_kernels.pairs_of(self.query, targets)


def hungarian_match(
    logits: Tensor | Sequence[Tensor],  # [sets, B, Q, C], or a list of these and of [B, Q, C]
    boxes_cxcywh: Tensor | Sequence[Tensor],  # likewise [sets, B, Q, 4]
    targets: Targets,
    cost: MatchCost = MatchCost(),
) -> Matches:
    """The assignment of least cost, for each set of predictions and each image alone; does not wait for the device.

    Predictions that are not finite are matched with nothing and do not raise: the loss shows them.
    """
    first = logits if isinstance(logits, Tensor) else logits[0]
    packed = pack(targets, first.device)
    weights = (cost.classification, cost.l1, cost.giou)
    match = dino_kernels.hungarian_match(logits, boxes_cxcywh, packed, preset="dino", weights=weights)
    return Matches(packed.image_of_each(), match.query_idx)
