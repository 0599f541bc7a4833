"""COCO average precision of a model, on one process or many."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dino.common.device import Amp, autocast
from dino.data import Batch, Categories, CocoIndex
from dino.evaluation.coco_metrics import CocoMetrics, score
from dino.model.postprocess import postprocess

Item = TypeVar("Item")


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
    """Score a model on the images of a loader.

    Each process of a distributed run predicts the images of its own loader; the results are gathered once at the end,
    and every process returns the same numbers. An image that several processes had counts once. The model's training
    mode is put back afterwards.

    Args:
        loader: yields batches, for example of `build_loader(dataset, 1, train=False)`. With more than one image in a
            batch, images are padded to the largest, which changes the numbers a little (49.3 to 49.0 AP at four): use
            one to report.
        ground_truth: the index of the data set, a COCO annotation file or its content. The images that the loader
            yields are scored.
        categories: maps the model's labels to the category ids of the ground truth.
        device: where to run the model; it is moved there.
        amp: "bf16" or "fp16" run it under autocast.
        top_k: detections kept of each image; COCO counts at most 100 of each class.
        progress: a bar on the terminal, by the first process.

    Raises:
        ValueError: an unknown `amp`, an image that the ground truth does not have, or no image at all.
    """
    results, image_ids = predict_results(
        model, loader, categories, device=device, amp=amp, top_k=top_k, progress=progress
    )
    truth = ground_truth.ground_truth() if isinstance(ground_truth, CocoIndex) else ground_truth
    return score(results, image_ids, truth)


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
    """Results in COCO's format of all images of all processes' loaders, and the ids of the images, each once."""
    context = autocast(device, amp)
    was_training = model.training
    model.to(device).eval()
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        with torch.no_grad():  # not inference_mode: sharded weights gathered under it could not be trained again
            for batch in _with_progress(loader, progress):
                batch = batch.to(device)
                with context():
                    outputs = model(batch.images, batch.mask)
                detections = postprocess(outputs, batch.sizes_hw, top_k)
                for image_id, found in zip(batch.image_ids, detections, strict=True):
                    ids = [categories.category_id_of(label) for label in found["labels"].tolist()]
                    by_image[image_id] = coco_results(image_id, found["boxes"], found["scores"], ids)
    finally:
        model.train(was_training)
    merged = _gather(by_image)
    return [result for image_id in sorted(merged) for result in merged[image_id]], sorted(merged)


def coco_results(
    image_id: int,
    boxes_xyxy: Tensor,  # [N, 4] pixels
    scores: Tensor,  # [N]
    category_ids: list[int],  # [N]
) -> list[dict[str, Any]]:
    """Detections of one image as entries of a COCO result file (boxes as x, y, width, height)."""
    boxes = boxes_xyxy.float().cpu()
    corner_and_size = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, box, score in zip(category_ids, corner_and_size, scores.float().cpu().tolist(), strict=True)
    ]


def _with_progress(loader: Iterable[Batch], progress: bool) -> Iterable[Batch]:
    if not progress or (_distributed() and torch.distributed.get_rank() != 0):
        return loader
    return progress_bar(loader, "evaluate", "batch")


def progress_bar(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a bar on stderr: a line that is updated on a terminal, and one every half minute in a file."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, desc=name, unit=unit, total=total, dynamic_ncols=True, mininterval=interval)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gather(by_image: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """All processes' results. A sampler repeats images to give every process equally many: those count once."""
    if not _distributed():
        return by_image
    shards: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shards, by_image)
    merged: dict[int, list[dict[str, Any]]] = {}
    for shard in reversed(shards):
        merged.update(shard)
    return merged
