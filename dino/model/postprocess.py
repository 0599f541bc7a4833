"""From predictions to detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dino.model.boxes import cxcywh_to_xyxy
from dino.model.outputs import DetectionOutput


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
    probability = logits.float().sigmoid().flatten(1)
    scores, index = probability.topk(min(top_k, probability.shape[1]), 1)
    query, labels = index // logits.shape[-1], index % logits.shape[-1]
    scale = sizes_hw.flip(1).repeat(1, 2)[:, None]
    boxes = (cxcywh_to_xyxy(boxes_cxcywh.float()) * scale).gather(1, query[..., None].expand(-1, -1, 4))
    return [{"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, boxes, strict=True)]
