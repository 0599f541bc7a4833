"""Images and targets of a COCO index."""

from __future__ import annotations

import random
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dino.common.text import shorten
from dino.data.categories import Categories
from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError
from dino.data.images import ImageError, open_image

# More unreadable images in a row mean an unavailable disk, not damaged files.
_MOST_REPLACEMENTS = 20


class Transform(Protocol):
    """`TrainTransform`, `EvalTransform`, or a function of your own with the same arguments and results.

    A transform with a method `first_size` as that of `TrainTransform` gets images that were decoded in a smaller size,
    and then their original size as `size_wh`.
    """

    def __call__(
        self, image: Image.Image, boxes_xyxy: Tensor, labels: Tensor, rng: random.Random
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class CocoDataset(Dataset):
    """Normalised images with their boxes.

    `dataset[i]` is `(image, target)`: image float32 [3, h, w], or None if it cannot be read; target with

    - `boxes` float32 [T, 4], cxcywh in 0..1 of the augmented image, and `labels` int64 [T];
    - `image_id`, an int, and `size_hw` int64 [2], height and width of the original image;
    - `problems`, a list of text, if an image could not be read.

    The augmentation depends only on the seed, the epoch and the index, not on the number of workers or the order.
    `dataset[epoch, i]` selects the epoch, also in workers that keep running; `dataset[i]` is epoch 0.

    Args:
        index: the annotations.
        categories: the label of each category id.
        transform: turns an RGB image and pixel boxes into tensors.
        train: replace an unreadable image by the next readable one. Otherwise its `image` is None, and `collate`
            leaves it out.
        seed: seed of the augmentation.
        strict: raise ImageError at an unreadable image instead.

    Raises:
        DatasetError: an annotation has a category id that `categories` lacks.
    """

    def __init__(
        self,
        index: CocoIndex,
        categories: Categories,
        transform: Transform,
        *,
        train: bool,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        unknown = sorted(index.boxes_per_category.keys() - set(categories.ids))
        if unknown:
            raise DatasetError(
                f"{index.name}: annotations have category ids {shorten(unknown)}, but the model's"
                f" categories are {shorten(categories.ids)}."
            )
        self.index = index
        self.categories = categories
        self.transform = transform
        self.train = train
        self.seed = seed
        self.strict = strict

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | None, dict[str, Any]]:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if not 0 <= position < len(self):
            raise IndexError(f"index must be one of 0..{len(self) - 1}, got {position}")
        problems: list[str] = []
        for candidate in range(position, position + min(len(self), _MOST_REPLACEMENTS)):
            candidate %= len(self)
            try:
                image, target = self._load(candidate, f"{self.seed}/{epoch}/{position}")
            except ImageError as error:
                if self.strict:
                    raise
                problems.append(str(error))
                if not self.train:
                    return None, {**self._target(candidate), "problems": problems}
            else:
                return image, {**target, "problems": problems} if problems else target
        raise DatasetError(
            f"{self.index.name}: {len(problems)} images in a row cannot be read, the last one: {problems[-1]}"
        )

    def _load(self, position: int, seed: str) -> tuple[Tensor, dict[str, Any]]:
        target = self._target(position)
        height, width = target["size_hw"].tolist()
        size_wh: tuple[int, int] = (width, height)
        path = self.index.image_path(position)
        first_size = getattr(self.transform, "first_size", None)
        least_wh = None if first_size is None else first_size(size_wh, random.Random(seed))
        image = open_image(path, image_id=target["image_id"], size_wh=size_wh, least_wh=least_wh)
        reduced: dict[str, Any] = {} if image.size == size_wh else {"size_wh": size_wh}
        boxes_xyxy, category_ids = self.index.training_boxes(position)
        labels = torch.tensor([self.categories.label_of(int(i)) for i in category_ids], dtype=torch.int64)
        boxes = torch.from_numpy(boxes_xyxy)
        tensor, target["boxes"], target["labels"] = self.transform(image, boxes, labels, random.Random(seed), **reduced)
        return tensor, target

    def _target(self, position: int) -> dict[str, Any]:
        width, height = self.index.sizes_wh[position].tolist()
        return {"image_id": int(self.index.image_ids[position]), "size_hw": torch.tensor([height, width])}
