"""Predictions of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class DenoisingLayout:
    """Order of the denoising queries: `num_groups` groups of `kinds` blocks of `group_size` slots.

    A slot's number is `group_size * (kinds * group + kind) + k` for box k of an image; kind 0 holds the positives,
    kind 1 the negatives. Images with fewer boxes leave slots unused.

    For targets with a fixed capacity, the number of slots depends on the capacity alone, and numbers and sizes of the
    groups are known on the device alone. Slots behind the last group belong to none.
    """

    num_groups: int | Tensor
    group_size: int | Tensor
    kinds: int
    num_queries: int  # slots N


@dataclass
class DenoisingOutput:
    """Predictions of the denoising queries."""

    logits: Tensor  # [layers, B, N, C]
    boxes_cxcywh: Tensor  # [layers, B, N, 4]
    layout: DenoisingLayout
    target: Tensor  # [B, N] int64: the packed target that a positive is to restore; -1: the slot is background
    in_group: Tensor | None = None  # [N] bool: False behind the last group; None: all slots belong to a group


@dataclass
class DetectionOutput:
    """Predictions of every decoder layer (the last is the final one), of the encoder, and of denoising in training."""

    logits: Tensor  # [layers, B, Q, C]
    boxes_cxcywh: Tensor  # [layers, B, Q, 4] in 0..1
    encoder_logits: Tensor | None = None  # [B, Q, C]; None with static queries
    encoder_boxes_cxcywh: Tensor | None = None  # [B, Q, 4]
    selected_indices: Tensor | None = None  # [B, Q] tokens selected as queries
    proposals_cxcywh: Tensor | None = None  # [B, Q, 4] their boxes before the encoder's box head moved them
    denoising: DenoisingOutput | None = None
    hybrid: DetectionOutput | None = None
    """Those of the second branch in training, with `hybrid_queries`."""
    routes: tuple[DetectionOutput, ...] = ()
    """Those of the routes in training, with `multi_route`; the second has predictions of the encoder."""

    def as_dict(self) -> dict[str, Any]:
        """Return the official dictionary: `pred_logits`, `pred_boxes`, `aux_outputs`, `interm_outputs`, `dn`."""
        result: dict[str, Any] = _layers(self.logits, self.boxes_cxcywh)
        if self.encoder_logits is not None:
            result["interm_outputs"] = {"pred_logits": self.encoder_logits, "pred_boxes": self.encoder_boxes_cxcywh}
            result["topk"] = self.selected_indices
        if self.denoising is not None:
            layout = self.denoising.layout
            result["dn"] = _layers(self.denoising.logits, self.denoising.boxes_cxcywh) | {
                "pad_size": layout.num_queries,
                "num_groups": layout.num_groups,
            }
        if self.hybrid is not None:
            result["hybrid"] = self.hybrid.as_dict()
        if self.routes:
            result["routes"] = [route.as_dict() for route in self.routes]
        return result


def _layers(logits: Tensor, boxes_cxcywh: Tensor) -> dict[str, Any]:
    layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes_cxcywh, strict=True)]
    return layers[-1] | {"aux_outputs": layers[:-1]}


# Otherwise torch.export refuses a model that returns it.
torch.export.register_dataclass(DetectionOutput)
