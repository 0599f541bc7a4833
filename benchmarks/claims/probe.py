"""What is measured at a checkpoint: AP with and without NMS, matches, duplicates, anchors, and each layer's boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dino.checkpoint import load_model
from dino.data import Batch, Datasets, build_loader
from dino.evaluation.coco_metrics import score
from dino.evaluation.evaluate import coco_results
from dino.inference.boxes import iou, nms
from dino.model.boxes import cxcywh_to_xyxy
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.model.outputs import DetectionOutput
from dino.model.postprocess import postprocess

BATCH = 20
SURE = 0.3  # the lowest score of a detection that is counted as a duplicate
FAR = 100  # k of the paper's ATD(k), the mean of the k largest distances
NMS = {"AP_nms_0.7": 0.7, "AP_nms_0.5": 0.5}


@dataclass
class Matched:
    """The objects of some images, and the queries that the last decoder layer's predictions match them with."""

    query: Tensor  # [N] identity of the query: the token that it was selected from, or its index if static
    boxes: Tensor  # [1 + layers, N, 4] its anchor and its box after each layer, cxcywh in 0..1
    truth: Tensor  # [N, 4] cxcywh in 0..1


def probe(checkpoints: Sequence[Path], data: Datasets) -> list[dict[str, Any]]:
    """Return what is measured at each checkpoint of a run, in order of training."""
    rows, before = [], None
    for path in checkpoints:
        model = load_model(path)[0].eval()
        row, query = measure(model, data)
        # Of DN-DETR's instability, the part of objects: a changed object changes the targets of up to two queries.
        row["instability"] = None if before is None else (query != before).double().mean().item()
        before = query
        rows.append({"step": int(path.name.removeprefix("step-"))} | row)
    return rows


@torch.no_grad()
def measure(model: DINO, data: Datasets) -> tuple[dict[str, Any], Tensor]:
    """Return what is measured on the validation images, and the query that each object is matched with, [N]."""
    assert data.valid is not None
    parts, pairs = [], []
    found: list[dict[str, Tensor]] = []
    image_ids: list[int] = []
    for batch in build_loader(data.valid, BATCH, train=False):
        outputs = model(batch.images, batch.mask)
        detections = postprocess(outputs, batch.sizes_hw)
        parts.append(matched(model, outputs, batch))
        pairs += list(on_objects(detections, batch))
        found += detections
        image_ids += batch.image_ids
    boxes, truth = torch.cat([part.boxes for part in parts], 1), torch.cat([part.truth for part in parts])
    distance = (boxes[0] - truth).abs().sum(-1)
    scores, overlaps = (torch.cat([pair[i] for pair in pairs]).tolist() for i in (0, 1))
    several = torch.cat([torch.bincount(objects[sure >= SURE]) for sure, _, objects in pairs])
    plain = average_precision(found, image_ids, data)
    row = {
        **{name: plain[name] for name in ("AP", "AP50", "AP75")},
        **{
            name: average_precision([_suppressed(each, most) for each in found], image_ids, data)["AP"]
            for name, most in NMS.items()
        },
        "duplicates": ((several - 1).clamp(min=0).sum() / (several > 0).sum()).item(),
        "score_iou": float(spearmanr(scores, overlaps)[0]),  # pyright: ignore[reportArgumentType]
        "ATD": distance.topk(min(FAR, len(distance))).values.mean().item(),
        "layer_iou": iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth)).double().mean(1).tolist(),
    }
    return row, torch.cat([part.query for part in parts])


def matched(model: DINO, outputs: DetectionOutput, batch: Batch) -> Matched:
    """Match the last layer's predictions of a batch with its objects, by the cost of DINO whatever the model's."""
    truth = batch.targets
    assert truth.boxes_cxcywh is not None
    criterion = SetCriterion(model.config)
    criterion.match_cost = "focal"
    query = criterion.match(outputs.logits[-1:], outputs.boxes_cxcywh[-1:], truth)[0]
    image = truth.image_of_each()
    if outputs.encoder_boxes_cxcywh is None or outputs.selected_indices is None:
        anchors = model.query_selection.anchors.weight.sigmoid().expand(truth.num_images, -1, -1)
        identity = query
    else:
        anchors, identity = outputs.encoder_boxes_cxcywh, outputs.selected_indices[image, query]
    boxes = torch.cat([anchors[None], outputs.boxes_cxcywh])[:, image, query]
    return Matched(identity, boxes, truth.boxes_cxcywh)


def on_objects(detections: list[dict[str, Tensor]], batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, per image, the detections on an object of their class: score, IoU with it (at least 0.5), its index."""
    truth, offsets = batch.targets, batch.targets.offsets.tolist()
    assert truth.boxes_cxcywh is not None
    for image, found in enumerate(detections):
        mine = slice(offsets[image], offsets[image + 1])
        scale = batch.sizes_hw[image].flip(0).repeat(2)
        overlap = iou(found["boxes"][:, None], cxcywh_to_xyxy(truth.boxes_cxcywh[mine]) * scale)
        overlap[found["labels"][:, None] != truth.labels[mine]] = 0
        best, index = overlap.max(1)
        on = best >= 0.5
        yield found["scores"][on], best[on], index[on]


def average_precision(found: Sequence[dict[str, Tensor]], image_ids: list[int], data: Datasets) -> dict[str, float]:
    """Return the COCO metrics of the detections of each image, in 0..1."""
    assert data.valid is not None
    results = [
        result
        for image_id, each in zip(image_ids, found, strict=True)
        for result in coco_results(image_id, each["boxes"], each["scores"], _category_ids(each["labels"], data))
    ]
    return score(results, image_ids, data.valid.index.ground_truth(), data.categories).summary()


def _category_ids(labels: Tensor, data: Datasets) -> list[int]:
    return [data.categories.category_id_of(label) for label in labels.tolist()]


def _suppressed(found: dict[str, Tensor], most: float) -> dict[str, Tensor]:
    kept = nms(found["boxes"], found["labels"], most)
    return {name: value[kept] for name, value in found.items()}
