"""Train the small backbone to classify digits, as published detectors start from a backbone that classifies images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dino.data import normalise, to_rgb
from dino.model.backbones import build_backbone

STEPS = 800
BATCH = 64
CROP = 48  # pixels around a digit, which is at most 26 long


def crops(folder: Path) -> tuple[list[Image.Image], Tensor]:
    """Return a crop around each digit of a split, CROP pixels wide and high, and its value [N]."""
    document = json.loads((folder / "_annotations.coco.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    pictures = {key: to_rgb(Image.open(folder / name)) for key, name in names.items()}
    images, labels = [], []
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        left, top = round(x + width / 2) - CROP // 2, round(y + height / 2) - CROP // 2
        images.append(pictures[annotation["image_id"]].crop((left, top, left + CROP, top + CROP)))
        labels.append(annotation["category_id"] - 1)
    return images, torch.tensor(labels)


def pretrain(data: Path, weights: Path) -> None:
    """Write the weights of `resnet_tiny` after 800 steps of classification by the centre of each of its maps."""
    images, labels = crops(data / "train")
    torch.manual_seed(0)
    backbone = build_backbone("resnet_tiny", (1, 2, 3))
    heads = nn.ModuleList(nn.Linear(channels, 10) for channels in backbone.channels)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,))
        maps = backbone(torch.stack([normalise(images[row]) for row in rows.tolist()]))
        loss = torch.stack(
            [F.cross_entropy(head(_centre(each)), labels[rows]) for each, head in zip(maps, heads, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    temporary = weights.with_suffix(".tmp")
    torch.save(backbone.state_dict(), temporary)
    temporary.replace(weights)


def _centre(features: Tensor) -> Tensor:
    """Return the mean of the middle pixel, or the middle two, of each side: [N, C] of a map [N, C, H, W]."""
    rows, columns = (slice((size - 1) // 2, size // 2 + 1) for size in features.shape[-2:])
    return features[:, :, rows, columns].mean((2, 3))
