"""Contrastive denoising: extra queries in training, made of noised ground truth (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from dino.model.config import ModelConfig
from dino.model.outputs import DenoisingLayout
from dino_kernels.targets import PackedTargets


@dataclass
class Noise:
    """Random numbers of one batch; the rows are all boxes of the batch, once per block of the layout."""

    p: Tensor  # [N] in [0, 1): which labels are redrawn
    new_label: Tensor  # [N], one per row; or the redrawn rows' new labels alone, in their order
    sign: Tensor  # [N, 4] direction of each corner coordinate: positive if above 0
    part: Tensor  # [N, 4] in [0, 1): how far it moves

    @classmethod
    def draw(cls, rows: int, num_classes: int, device: torch.device) -> Noise:
        """Draw the numbers of N = `rows` rows from PyTorch's generator."""
        return cls(
            p=torch.rand(rows, dtype=torch.float32, device=device),
            new_label=torch.randint(num_classes, (rows,), device=device),
            sign=torch.randint(2, (rows, 4), device=device),
            part=torch.rand(rows, 4, dtype=torch.float32, device=device),
        )


@dataclass
class DenoisingQueries:
    """Noised ground truth as input of the decoder, before the matching queries."""

    content: Tensor  # [B, N, C]
    anchors: Tensor  # [B, N, 4] logits of cxcywh
    layout: DenoisingLayout

    def blocked(self, num_matching: int) -> Tensor:
        """Return the attention mask [N + K, N + K] bool, True where the row may not attend to the column.

        Groups do not attend to each other. Matching queries, which must work without ground truth, attend to none.
        """
        layout = self.layout
        slots = torch.arange(layout.num_queries + num_matching, device=self.content.device)
        group = slots.clamp(max=layout.num_queries) // max(1, layout.kinds * layout.group_size)
        return (group[:, None] != group) & (slots < layout.num_queries)


class Denoising(nn.Module):
    """From ground truth to denoising queries: noised copies of each image's boxes, in independent groups.

    Each group has, for every box, a positive whose corners moved by up to half its size times the box noise, and a
    negative whose corners moved by one to two times that; a quarter of the labels (half of the label noise) are
    redrawn. Positives learn to restore their box, negatives to predict nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # One row more than classes, as in the official model, which never uses it.
        self.label_embed = nn.Embedding(config.num_classes + 1, config.hidden_dim)

    def layout(self, max_boxes: int) -> DenoisingLayout:
        """Return as many groups as fit in 2 * num_denoising queries, if no image has more than `max_boxes` boxes."""
        kinds = 2 if self.config.denoising == "contrastive" else 1
        budget = 2 * self.config.num_denoising
        if max_boxes == 0:
            groups = 1
        elif budget >= 100:
            groups = max(1, budget // (2 * max_boxes))
        else:
            groups = max(1, budget)  # as the official model, where small settings are numbers of groups
        return DenoisingLayout(groups, max_boxes, kinds)

    def forward(self, targets: PackedTargets, noise: Noise | None = None) -> DenoisingQueries:
        """Return the queries of a batch. Unused slots are not masked: they are queries centred on the image.

        Args:
            targets: the ground truth, with boxes and without a fixed capacity.
            noise: recorded random numbers in place of drawn ones.

        Raises:
            ValueError: recorded noise of another number of rows.
        """
        config, weight = self.config, self.label_embed.weight
        boxes, labels = targets.boxes_cxcywh, targets.labels  # [T, 4], [T]
        assert boxes is not None
        layout = self.layout(targets.max_targets)
        blocks = layout.num_groups * layout.kinds
        rows = blocks * len(labels)
        if noise is None:
            noise = Noise.draw(rows, config.num_classes, boxes.device)
        elif len(noise.p) != rows:
            raise ValueError(
                f"denoising_noise must have {rows} rows ({len(labels)} boxes, {layout.num_groups} groups, "
                f"{layout.kinds} kinds), got {len(noise.p)}. Record it with the same targets and configuration."
            )
        block = torch.arange(blocks, device=boxes.device)[:, None]
        noised_labels = _noise_labels(labels, blocks, noise, config.label_noise)  # [blocks, T]
        noised_boxes = _noise_boxes(boxes, block % layout.kinds == 1, noise, config.box_noise)

        image, index = targets.places()
        place = (image, layout.group_size * block + index)
        shape = (targets.num_images, layout.num_queries)
        content = weight.new_zeros(*shape, weight.shape[1]).index_put(place, self.label_embed(noised_labels))
        anchors = boxes.new_zeros(*shape, 4).index_put(place, inverse_sigmoid(noised_boxes))
        return DenoisingQueries(content, anchors, layout)


def _noise_labels(labels: Tensor, blocks: int, noise: Noise, label_noise: float) -> Tensor:
    """Replace a share of `label_noise / 2` of the labels in each block."""
    redrawn = noise.p.to(labels.device).view(blocks, len(labels)) < 0.5 * label_noise
    new = noise.new_label.to(labels)
    if len(new) != redrawn.numel():  # recorded for the redrawn rows alone
        return labels.expand_as(redrawn).masked_scatter(redrawn, new)
    return torch.where(redrawn, new.view_as(redrawn), labels)


def _noise_boxes(boxes_cxcywh: Tensor, negative: Tensor, noise: Noise, box_noise: float) -> Tensor:
    """Move each corner by a part of half the box's size, or one half more for negatives, which may turn inside out."""
    part = noise.part.to(boxes_cxcywh).view(len(negative), len(boxes_cxcywh), 2, 2) + negative[..., None, None]
    moved = torch.where(noise.sign.to(boxes_cxcywh.device).view_as(part) > 0, part, -part)
    half_size = boxes_cxcywh[:, None, 2:] / 2
    corners = cxcywh_to_xyxy(boxes_cxcywh).unflatten(-1, (2, 2)) + moved * half_size * box_noise
    return xyxy_to_cxcywh(corners.flatten(-2).clamp(0, 1))
