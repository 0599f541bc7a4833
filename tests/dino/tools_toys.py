"""Models of a few thousand weights, images and batches for the tests of evaluation, prediction and drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dino.data import Batch, Categories, EvalTransform, collate
from dino.inference.detections import Detections
from dino.inference.detector import Detector
from dino.model.config import ModelConfig, model_config
from dino.model.dino import DINO
from dino.model.outputs import DetectionOutput

CATEGORIES = Categories((3, 7, 40), ("cat", "dog", "a horse"))
TINY = model_config(
    "dino_tiny",
    hidden_dim=32,
    num_heads=4,
    ffn_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=20,
    num_classes=3,
    num_denoising=5,
)


def tiny_model(config: ModelConfig = TINY, seed: int = 0) -> DINO:
    """Random weights, the heads' included, so that boxes move from layer to layer and scores differ."""
    torch.manual_seed(seed)
    model = DINO(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return model


def tiny_detector(config: ModelConfig = TINY, seed: int = 0) -> Detector:
    """The tiny model, with images of 96 to 128 pixels."""
    return Detector(tiny_model(config, seed), CATEGORIES, transform=EvalTransform(96, 128), device="cpu")


def noise_picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Coarse coloured noise."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def same(found: Detections, expected: Detections) -> bool:
    """Whether detections have the same boxes and scores."""
    return torch.equal(found.boxes_xyxy, expected.boxes_xyxy) and torch.equal(found.scores, expected.scores)


def write_split(folder: Path, count: int = 3) -> Path:
    """Pictures 0.png, 1.png, ... with ids 100, 101, ... and one box each, but the last has none; the COCO file."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        noise_picture(64 + i, 48, seed=i).save(folder / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 64 + i, "height": 48})
        if i < count - 1:
            annotations.append({"id": i + 1, "image_id": 100 + i, "category_id": 7, "bbox": [8, 6, 30, 20 + i]})
    file = folder / "_annotations.coco.json"
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES.to_json()}
    file.write_text(json.dumps(document))
    return file


class Recited(nn.Module):
    """A model that gives prepared detections, one after the other: boxes_xyxy in 0..1, scores and labels."""

    def __init__(self, detections: list[tuple[list[list[float]], list[float], list[int]]], num_classes: int) -> None:
        super().__init__()
        self.detections, self.num_classes = detections, num_classes
        self.modes: list[bool] = []

    def forward(self, images: Tensor, mask: Tensor) -> DetectionOutput:
        self.modes.append(self.training)
        first = len(self.modes) - 1
        chosen = [self.detections[first * len(images) + i] for i in range(len(images))]
        queries = max(1, *(len(scores) for _, scores, _ in chosen), 1)
        logits = torch.full((1, len(images), queries, self.num_classes), -30.0)
        boxes = torch.full((1, len(images), queries, 4), 0.5)
        for i, (corners, scores, labels) in enumerate(chosen):
            for q, (corner, score, label) in enumerate(zip(corners, scores, labels, strict=True)):
                x0, y0, x1, y1 = corner
                boxes[0, i, q] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                logits[0, i, q, label] = torch.logit(torch.tensor(score, dtype=torch.float64)).float()
        return DetectionOutput(logits, boxes)


def batches(image_ids: list[int], size_hw: tuple[int, int] = (100, 200), batch_size: int = 1) -> list[Batch]:
    """Batches of empty images of one original size."""
    made = []
    for start in range(0, len(image_ids), batch_size):
        ids = image_ids[start : start + batch_size]
        target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
        target["size_hw"] = torch.tensor(size_hw)
        made.append(collate([(torch.zeros(3, 8, 8), {**target, "image_id": i}) for i in ids]))
    return made


def ground_truth(boxes: list[tuple[int, int, list[float]]], image_ids: list[int], **extra: Any) -> dict[str, Any]:
    """A COCO document of (image id, category id, box x y w h), with more fields for every annotation."""
    return {
        "images": [{"id": i, "width": 200, "height": 100} for i in image_ids],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box, **extra}
            for k, (image, category, box) in enumerate(boxes)
        ],
        "categories": CATEGORIES.to_json(),
    }
