"""Draw a sheet of images with their boxes, and a sheet of augmented batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image

from dino.data import CocoDataset, CocoIndex, ImageError, TrainTransform, denormalise, open_image, pad_images
from dino.data.sampler import ResumableSampler
from dino.inference.draw import class_colour, draw_boxes
from dino.visualize.caption import PAPER, Key, add_caption

_CELL = (400, 300)
_GAP = 8
_MOST_TAGS = 8
_MOST_KEYS = 24
_BATCHES, _BATCH = 3, 4


def data_sheet(split: str, index: CocoIndex, count: int, seed: int) -> Image.Image:
    """Draw `count` images of a split, chosen at random from those with boxes and then from the others."""
    order = list(range(len(index)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: len(index.training_boxes(i)[0]) == 0)
    cells, labels = [], set()
    for position in order:
        if len(cells) == max(1, count):
            break
        width, height = index.sizes_wh[position].tolist()
        try:
            image = open_image(index.image_path(position), size_wh=(width, height))
        except ImageError:
            continue
        boxes, ids = index.training_boxes(position)
        own = [index.categories.label_of(i) for i in ids.tolist()]
        labels |= set(own)
        cells.append(_drawn(image, boxes.tolist(), own, index.categories.names, _CELL))
    text = f"{len(cells)} of {len(index):,} images, each in full. Crowds and boxes without extent are not drawn."
    return add_caption(_grid(cells, 4), f"{split}: {index.name}", text, _legend(labels, index.categories.names))


def augmented_sheet(index: CocoIndex, transform: TrainTransform, seed: int) -> Image.Image:
    """Draw batches of training, a row each: images with their augmentation and padding, and the boxes to learn."""
    dataset = CocoDataset(index, index.categories, transform, train=True, seed=seed)
    size = min(_BATCH, len(dataset))
    cells, labels = [], set()
    sampler = ResumableSampler(len(dataset), size, train=True, seed=seed)
    for epoch in range(_BATCHES):
        sampler.seek(epoch)
        samples = [dataset[key] for key in next(iter(sampler))]
        images = [image for image, _ in samples if image is not None]
        padded, _ = pad_images(images)
        for picture, image, (_, target) in zip(padded, images, samples, strict=True):
            centre, extent = (target["boxes"] * torch.tensor([*image.shape[:0:-1]] * 2)).split(2, -1)
            boxes = torch.cat([centre - extent / 2, centre + extent / 2], -1).tolist()
            own = target["labels"].tolist()
            labels |= set(own)
            cells.append(_drawn(Image.fromarray(denormalise(picture)), boxes, own, index.categories.names, _CELL))
    text = (
        f"A row is a batch, here of {size} images: mirrored, cropped and resized at random, and padded with grey to "
        "the largest. The boxes are the targets."
    )
    return add_caption(_grid(cells, size), "Augmented batches", text, _legend(labels, index.categories.names))


def _drawn(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    cell: tuple[int, int],
) -> Image.Image:
    """Return an image scaled to fit a cell, with its boxes, and with tags if these are few."""
    scale = min(cell[0] / image.width, cell[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    scaled = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    scaled_boxes = [[value * scale for value in box] for box in boxes]
    texts = [names[label] for label in labels] if len(labels) <= _MOST_TAGS else None
    return draw_boxes(scaled, scaled_boxes, [class_colour(label) for label in labels], texts, width=2)


def _grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return a page of the cells in rows, each row as high as its highest cell."""
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    columns = min(columns, max(map(len, rows), default=1))
    heights = [max(cell.height for cell in row) for row in rows]
    width = columns * (_CELL[0] + _GAP) + _GAP
    page = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for k, cell in enumerate(row):
            left = _GAP + k * (_CELL[0] + _GAP) + (_CELL[0] - cell.width) // 2
            page.paste(cell, (left, top + (height - cell.height) // 2))
        top += height + _GAP
    return page


def _legend(labels: set[int], names: Sequence[str]) -> list[Key]:
    return [Key(names[label], class_colour(label)) for label in sorted(labels)[:_MOST_KEYS]]
