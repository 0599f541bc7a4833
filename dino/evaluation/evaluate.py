"""Measure the COCO average precision of a model, on one process or many."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino.common.console import Console
from dino.common.device import Amp, autocast
from dino.common.distributed import current_ranks
from dino.common.finite import require_finite_detections
from dino.data import Batch, Categories, CocoIndex
from dino.evaluation.coco_metrics import CocoMetrics, score
from dino.model.postprocess import limited, postprocess


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    ground_truth: Mapping[str, Any] | str | Path | CocoIndex,
    categories: Categories,
    *,
    device: torch.device | str,
    amp: Amp = "off",
    top_k: int = 300,
    progress: bool = True,
) -> CocoMetrics:
    """Compute the COCO metrics of a model on the images of a loader. Collective.

    Each process predicts the images of its own loader; the results are gathered at the end, and every process returns
    the same metrics. An image that several processes predicted counts once. The model's training mode is restored.

    Args:
        loader: yields batches, for example of `build_loader(dataset, 1, train=False)`. With more than one image in a
            batch, images are padded to the largest, which changes the metrics a little (49.3 to 49.0 AP at four): use
            one to report.
        ground_truth: the index of the data set, a COCO annotation file or its content. Only the loader's images are
            scored.
        categories: maps the model's labels to the category ids of the ground truth.
        device: where to run the model; it is moved there.
        amp: "bf16" or "fp16" run it under autocast.
        top_k: detections kept of each image; COCO counts at most 100 of each class.
        progress: show a progress bar, on the first process.

    Raises:
        ValueError: `amp` is unknown, an image is not in the ground truth, or there is no image.
        NotFiniteError: a detection is not finite.
    """
    results, image_ids = predict_results(
        model, loader, categories, device=device, amp=amp, top_k=top_k, progress=progress
    )
    truth = ground_truth.ground_truth() if isinstance(ground_truth, CocoIndex) else ground_truth
    return score(results, image_ids, truth, categories)


def predict_results(
    model: nn.Module,
    loader: Iterable[Batch],
    categories: Categories,
    *,
    device: torch.device | str,
    amp: Amp = "off",
    top_k: int = 300,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the results of all processes in COCO's format, and the ids of their images, each once. Collective."""
    ranks, context = current_ranks(device), autocast(device, amp)
    console = Console(sys.stderr if progress and ranks.first else None)
    was_training = model.training
    top_k = limited(model, top_k)
    model.to(device).eval()
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        with torch.no_grad():  # not inference_mode: sharded weights gathered under it could not be trained again
            for batch in console.bar(loader, "evaluate", "batches"):
                batch = batch.to(device, non_blocking=True)
                with context():
                    outputs = model(batch.images, batch.mask)
                detections = postprocess(outputs, batch.sizes_hw, top_k)
                for image_id, found in zip(batch.image_ids, detections, strict=True):
                    require_finite_detections(found, model, image=f"image {image_id}", amp=amp)
                    ids = [categories.category_id_of(label) for label in found["labels"].tolist()]
                    by_image[image_id] = coco_results(image_id, found["boxes"], found["scores"], ids)
    finally:
        model.train(was_training)
    merged: dict[int, list[dict[str, Any]]] = {}
    for part in reversed(ranks.gather(by_image)):
        merged.update(part)
    return [result for image_id in sorted(merged) for result in merged[image_id]], sorted(merged)


def coco_results(
    image_id: int,
    boxes_xyxy: Tensor,  # [N, 4] pixels
    scores: Tensor,  # [N]
    category_ids: list[int],  # [N]
) -> list[dict[str, Any]]:
    """Return the detections of one image as entries of a COCO result file (boxes as x, y, width, height)."""
    boxes = boxes_xyxy.float().cpu()
    corner_and_size = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, box, score in zip(category_ids, corner_and_size, scores.float().cpu().tolist(), strict=True)
    ]
