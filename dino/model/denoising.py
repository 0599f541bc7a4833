"""Contrastive denoising: queries made of noised ground truth, to learn from beside matching (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from dino.model.config import ModelConfig
from dino.model.outputs import DenoisingLayout
from dino.model.targets import Targets, pack, places


class Noise(Protocol):
    """Random numbers of one batch; rows are all boxes of the batch, once per block of the layout."""

    p: Tensor  # [N] in [0, 1): which labels are redrawn
    new_label: Tensor  # the redrawn rows' new labels, in their order; or [N], one per row
    sign: Tensor  # [N, 4] direction of each corner coordinate: positive, or not
    part: Tensor  # [N, 4] in [0, 1): how far it moves


@dataclass
class DrawnNoise:
    """Noise from PyTorch's generator."""

    p: Tensor
    new_label: Tensor
    sign: Tensor
    part: Tensor

    @classmethod
    def draw(cls, rows: int, num_classes: int, device: torch.device) -> DrawnNoise:
        return cls(
            p=torch.rand(rows, device=device),
            new_label=torch.randint(num_classes, (rows,), device=device),
            sign=torch.randint(2, (rows, 4), device=device),
            part=torch.rand(rows, 4, device=device),
        )


@dataclass
class DenoisingQueries:
    """Noised ground truth as decoder input, to stand before the matching queries."""

    content: Tensor  # [B, N, C]
    anchors: Tensor  # [B, N, 4] logits of cxcywh
    layout: DenoisingLayout

    def blocked(self, num_matching: int) -> Tensor:
        """[N + K, N + K] bool, True where the row may not look at the column.

        Groups do not see each other, and matching queries, which must work without ground truth, see none of them.
        """
        layout = self.layout
        slots = torch.arange(layout.num_queries, device=self.content.device)
        group = slots // max(1, layout.kinds * layout.group_size)
        group = torch.cat([group, group.new_full((num_matching,), -1)])
        return (group[:, None] != group) & (group != -1)


class Denoising(nn.Module):
    """Settings of the denoising queries, and their label embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # One row more than classes, as in the official model, which never uses it.
        self.label_embed = nn.Embedding(config.num_classes + 1, config.hidden_dim)

    def layout(self, most_boxes: int) -> DenoisingLayout:
        """As many groups as fit in 2 * num_denoising queries, when the fullest image has `most_boxes` boxes."""
        kinds = 2 if self.config.denoising == "contrastive" else 1
        budget = 2 * self.config.num_denoising
        if most_boxes == 0:
            groups = 1
        elif budget >= 100:
            groups = max(1, budget // (2 * most_boxes))
        else:
            groups = max(1, budget)  # the official model's reading of small settings: that many groups
        return DenoisingLayout(groups, most_boxes, kinds)


def contrastive_denoising(
    denoising: Denoising,
    targets: Targets,
    noise: Noise | None = None,
) -> DenoisingQueries:
    """Noised copies of each image's ground truth, in independent groups.

    Each group has, for every box, a positive whose corners moved by up to half its size times the box noise, and a
    negative whose corners moved by one to two times that; a quarter of the labels (half of the label noise) are
    redrawn. Positives learn to restore their box, negatives to predict nothing. Slots that an image has no box for are
    live queries at the image's centre.

    Args:
        denoising: the settings.
        targets: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].
        noise: recorded random numbers in place of drawn ones.

    Raises:
        ValueError: recorded noise of another number of rows.
    """
    config = denoising.config
    weight = denoising.label_embed.weight
    truth = pack(targets, weight.device)
    boxes, labels = truth.boxes_cxcywh, truth.labels  # [N0, 4], [N0]
    assert boxes is not None  # pack() refuses
    layout = denoising.layout(truth.max_targets)
    blocks = layout.num_groups * layout.kinds
    rows = blocks * len(labels)
    if noise is None:
        noise = DrawnNoise.draw(rows, config.num_classes, boxes.device)
    elif len(noise.p) != rows:
        raise ValueError(
            f"denoising_noise must have {rows} rows ({len(labels)} boxes, {layout.num_groups} groups, {layout.kinds} "
            f"kinds), got {len(noise.p)}"
        )
    block = torch.arange(blocks, device=boxes.device).repeat_interleave(len(labels))  # [rows]
    negative = block % layout.kinds == 1
    noised_labels = _noise_labels(labels.repeat(blocks), noise, config.label_noise)
    noised_boxes = _noise_boxes(boxes.repeat(blocks, 1), negative, noise, config.box_noise)

    image, within = (index.repeat(blocks) for index in places(truth))
    place = (image, layout.group_size * block + within)
    shape = (truth.num_images, layout.num_queries)
    content = weight.new_zeros(*shape, weight.shape[1]).index_put(place, denoising.label_embed(noised_labels))
    anchors = boxes.new_zeros(*shape, 4).index_put(place, inverse_sigmoid(noised_boxes))
    return DenoisingQueries(content, anchors, layout)


def _noise_labels(labels: Tensor, noise: Noise, label_noise: float) -> Tensor:
    redrawn = noise.p.to(labels.device) < 0.5 * label_noise
    new = noise.new_label.to(labels)
    if len(new) != len(labels):  # recorded for the redrawn rows alone
        new = labels.masked_scatter(redrawn, new)
    return torch.where(redrawn, new, labels)


def _noise_boxes(boxes_cxcywh: Tensor, negative: Tensor, noise: Noise, box_noise: float) -> Tensor:
    """Corners moved by a part of half the box's size, negatives by a half more; negatives may turn inside out."""
    sign = torch.where(noise.sign.to(boxes_cxcywh.device) > 0, 1.0, -1.0)
    part = noise.part.to(boxes_cxcywh) + negative[:, None]
    half_size = boxes_cxcywh[:, 2:].repeat(1, 2) / 2
    corners = cxcywh_to_xyxy(boxes_cxcywh) + sign * part * half_size * box_noise
    return xyxy_to_cxcywh(corners.clamp(0, 1))
