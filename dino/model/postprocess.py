"""From predictions to detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy
from dino.model.outputs import DetectionOutput


def limited(model: nn.Module, top_k: int) -> int:
    """Return the number of detections of an image to ask for: fewer where an exported file has fewer in its outputs."""
    return min(top_k, getattr(model, "most_detections", None) or top_k)


@torch.no_grad()
def postprocess(
    outputs: DetectionOutput | dict[str, Any],
    sizes_hw: Tensor,  # [B, 2] of the original images, pixels
    top_k: int = 300,
) -> list[dict[str, Tensor]]:
    """Return the best-scored pairs of query and class; no suppression, no threshold, boxes are not clipped.

    Returns:
        Per image `scores` [k] in descending order, `labels` [k] and `boxes` [k, 4] xyxy in pixels; k is top_k, or less
        if there are fewer pairs.

    Raises:
        ValueError: sizes_hw is not one (height, width) per image.
    """
    if isinstance(outputs, DetectionOutput):
        logits, boxes_cxcywh = outputs.logits[-1], outputs.boxes_cxcywh[-1]
    else:
        logits, boxes_cxcywh = outputs["pred_logits"], outputs["pred_boxes"]
    sizes_hw = torch.as_tensor(sizes_hw, device=logits.device)
    if sizes_hw.shape != (len(logits), 2):
        raise ValueError(
            f"sizes_hw must be [{len(logits)}, 2], got {list(sizes_hw.shape)}. Pass (height, width) of each image."
        )
    scores, labels, boxes = best_pairs(logits.float().sigmoid(), boxes_cxcywh.float(), top_k)
    boxes = boxes * sizes_hw.flip(1).repeat(1, 2)[:, None]
    return [{"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, boxes, strict=True)]


def best_pairs(
    scores: Tensor,  # [B, Q, C]
    boxes_cxcywh: Tensor,  # [B, Q, 4] in 0..1
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores in descending order, the labels and the boxes xyxy of the best pairs of query and class.

    Returns:
        [B, k], [B, k] int64 and [B, k, 4]; k is count, or less if there are fewer pairs.
    """
    flat = scores.flatten(1)
    best, index = flat.topk(min(count, flat.shape[1]), 1)
    query, labels = index // scores.shape[-1], index % scores.shape[-1]
    return best, labels, cxcywh_to_xyxy(boxes_cxcywh).gather(1, query[..., None].expand(-1, -1, 4))
