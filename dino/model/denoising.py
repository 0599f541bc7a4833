"""Contrastive denoising: extra queries in training, made of noised ground truth (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from dino.model.config import ModelConfig
from dino.model.outputs import DenoisingLayout
from dino_kernels.targets import PackedTargets


@dataclass
class Noise:
    """Random numbers of one batch, for every slot of every image."""

    p: Tensor  # [B, N] in [0, 1): which labels are redrawn
    new_label: Tensor  # [B, N]
    sign: Tensor  # [B, N, 4] direction of each corner coordinate: positive if above 0
    part: Tensor  # [B, N, 4] in [0, 1): how far it moves

    @classmethod
    def draw(cls, images: int, slots: int, num_classes: int, device: torch.device) -> Noise:
        """Draw the numbers of B = `images` and N = `slots` from PyTorch's generator."""
        return cls(
            p=torch.rand(images, slots, dtype=torch.float32, device=device),
            new_label=torch.randint(num_classes, (images, slots), device=device),
            sign=torch.randint(2, (images, slots, 4), device=device),
            part=torch.rand(images, slots, 4, dtype=torch.float32, device=device),
        )


@dataclass
class DenoisingQueries:
    """Noised ground truth as input of the decoder, before the matching queries."""

    content: Tensor  # [B, N, C]
    anchors: Tensor  # [B, N, 4] logits of cxcywh
    layout: DenoisingLayout
    group: Tensor  # [N] group of each slot
    target: Tensor  # [B, N], of `DenoisingOutput`
    in_group: Tensor | None  # [N], of `DenoisingOutput`

    def blocked(self, num_matching: int) -> Tensor:
        """Return the attention mask [N + K, N + K] bool, True where the row may not attend to the column.

        Groups do not attend to each other. Matching queries, which must work without ground truth, attend to none.
        """
        group = F.pad(self.group, (0, num_matching), value=-1)
        return (group[:, None] != group) & (group >= 0)


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

    def layout(self, targets: PackedTargets) -> DenoisingLayout:
        """Return as many groups as fit in 2 * num_denoising queries; at least one, of all boxes of an image."""
        kinds = 2 if self.config.denoising == "contrastive" else 1
        pairs, most = self.config.num_denoising, targets.max_targets
        size = most if targets.counts is not None else targets.offsets.diff().amax()
        # As in the official model, small settings are numbers of groups.
        if 2 * pairs < 100:
            groups = 2 * pairs if most > 0 and pairs > 0 else 1
            return DenoisingLayout(groups, size, kinds, groups * kinds * most)
        if isinstance(size, Tensor):
            groups = (pairs // size.clamp(min=1)).clamp(min=1)
            return DenoisingLayout(groups, size, kinds, kinds * max(pairs, most))
        groups = max(1, pairs // most) if most > 0 else 1
        return DenoisingLayout(groups, most, kinds, groups * kinds * most)

    def forward(self, targets: PackedTargets, noise: Noise | None = None) -> DenoisingQueries:
        """Return the queries of a batch. Unused slots are not masked: they are queries centred on the image.

        Args:
            targets: the ground truth, with boxes.
            noise: recorded random numbers in place of drawn ones.

        Raises:
            ValueError: recorded noise of another number of images or slots.
        """
        config = self.config
        boxes, labels, device = targets.boxes_cxcywh, targets.labels, targets.labels.device  # [T, 4], [T]
        assert boxes is not None
        layout = self.layout(targets)
        shape = (targets.num_images, layout.num_queries)
        if noise is None:
            noise = Noise.draw(*shape, config.num_classes, device)
        elif tuple(noise.p.shape) != shape:
            raise ValueError(
                f"denoising_noise must have [images, slots] = {list(shape)}, got {list(noise.p.shape)}. Record it with "
                "the same targets and configuration."
            )
        size = layout.group_size.clamp(min=1) if isinstance(layout.group_size, Tensor) else max(1, layout.group_size)
        slot = torch.arange(layout.num_queries, device=device)
        index, group = slot % size, slot // (layout.kinds * size)
        is_negative = slot % (layout.kinds * size) >= size
        is_box = index < targets.offsets.diff()[:, None]  # [B, N]
        in_group = None
        if targets.counts is None:
            in_group = slot < layout.num_groups * layout.kinds * layout.group_size
            is_box = is_box & in_group
            labels = labels.clamp(min=0)  # unused rows of a capacity have none
        # Slots without a box take the first one, whose numbers are replaced.
        target = (targets.offsets[:-1, None] + index) * is_box
        redrawn = noise.p.to(device) < 0.5 * config.label_noise
        noised_labels = torch.where(redrawn, noise.new_label.to(labels), labels[target])
        noised_boxes = _noise_boxes(boxes[target], is_negative, noise, config.box_noise)
        return DenoisingQueries(
            content=self.label_embed(noised_labels) * is_box[..., None],
            anchors=inverse_sigmoid(torch.where(is_box[..., None], noised_boxes, 0.5)),
            layout=layout,
            group=group,
            target=torch.where(is_box & ~is_negative, target, -1),
            in_group=in_group,
        )


def _noise_boxes(boxes_cxcywh: Tensor, negative: Tensor, noise: Noise, box_noise: float) -> Tensor:
    """Move each corner by a part of half the box's size, or one half more for negatives, which may turn inside out."""
    part = noise.part.to(boxes_cxcywh) + negative[:, None]
    moved = torch.where(noise.sign.to(boxes_cxcywh.device) > 0, part, -part).unflatten(-1, (2, 2))
    half_size = boxes_cxcywh[..., None, 2:] / 2
    corners = cxcywh_to_xyxy(boxes_cxcywh).unflatten(-1, (2, 2)) + moved * half_size * box_noise
    return xyxy_to_cxcywh(corners.flatten(-2).clamp(0, 1))
