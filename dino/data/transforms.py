"""The augmentation of DETR and DINO, and the transform for evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sample = tuple[Image.Image, Tensor, Tensor]
"""An RGB image, its boxes_xyxy float32 [T, 4] in pixels, and their labels int64 [T]."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize and normalise. Nothing is random: the generator is not used."""

    short_side: int = 800
    """Pixels of the shorter side."""
    long_side: int | None = 1333
    """Limit of the longer side, even if the shorter one is then below short_side."""

    def __post_init__(self) -> None:
        _check_sides("short_side", (self.short_side,), self.long_side)

    def __call__(
        self,
        image: Image.Image,
        boxes_xyxy: Tensor,  # [T, 4] float32, pixels
        labels: Tensor,  # [T] int64
        rng: random.Random | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image float32 [3, h, w], boxes_cxcywh [T, 4] in 0..1 of that image, labels [T]."""
        return to_tensors(*resize((image, boxes_xyxy, labels), self.short_side, self.long_side))


@dataclass(frozen=True)
class TrainTransform:
    """Random flip, then either resize, or (half the time) resize, crop and resize."""

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    """The shorter side of the result is one of these, pixels."""
    long_side: int | None = 1333
    """The longer side of the result is at most this."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """The shorter side before a crop is one of these."""
    crop_size: tuple[int, int] = (384, 600)
    """Least and largest width and height of a crop."""
    crop_probability: float = 0.5
    """Probability of a crop."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip; use 0 where mirroring changes the class (digits, text)."""
    reduced_decoding: bool = True
    """Whether `first_size` allows files to be decoded in a smaller size."""

    def __post_init__(self) -> None:
        for name in ("short_sides", "crop_short_sides", "crop_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_sides("short_sides", self.short_sides, self.long_side)
        _check_sides("crop_short_sides", self.crop_short_sides, None)
        if len(self.crop_size) != 2 or not 1 <= self.crop_size[0] <= min(self.crop_size[1], *self.crop_short_sides):
            raise ValueError(
                "crop_size must be (least, largest), with least at most every one of crop_short_sides"
                f" {self.crop_short_sides}, got {self.crop_size}"
            )
        for name in ("crop_probability", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")

    def __call__(
        self,
        image: Image.Image,
        boxes_xyxy: Tensor,  # [T, 4] float32, pixels
        labels: Tensor,  # [T] int64
        rng: random.Random,
        size_wh: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image float32 [3, h, w], boxes_cxcywh [T', 4] in 0..1 of that image, labels [T'].

        T' < T if boxes lie outside a crop.

        Args:
            size_wh: width and height that the boxes refer to, if the image was decoded in a smaller size: only pixels
                depend on that.
        """
        sample, size_wh = (image, boxes_xyxy, labels), size_wh or image.size
        flips, crops = self._draw(rng)
        if flips:
            sample = flip(sample, size_wh)
        if crops:
            sample = resize(sample, rng.choice(self.crop_short_sides), None, size_wh)
            sample = crop(sample, *random_region(rng, sample[0].size, *self.crop_size))
            size_wh = sample[0].size
        return to_tensors(*resize(sample, rng.choice(self.short_sides), self.long_side, size_wh))

    def first_size(self, size_wh: tuple[int, int], rng: random.Random) -> tuple[int, int]:
        """Return width and height after the first resize of an image of `size_wh`, whose call gets the same `rng`."""
        if not self.reduced_decoding:
            return size_wh
        _, crops = self._draw(rng)
        sides = (rng.choice(self.crop_short_sides), None) if crops else (rng.choice(self.short_sides), self.long_side)
        return resized_size(size_wh, *sides)

    def _draw(self, rng: random.Random) -> tuple[bool, bool]:
        """Draw whether to flip, and whether to crop."""
        return rng.random() < self.flip_probability, rng.random() < self.crop_probability


def resized_size(size_wh: tuple[int, int], short_side: int, long_side: int | None) -> tuple[int, int]:
    """Return width and height after `resize`, rounded as in the original, with which checkpoints are evaluated."""
    shorter, longer = min(size_wh), max(size_wh)
    if long_side is not None and longer / shorter * short_side > long_side:
        # At least 1: the original fails on images a thousand times as long as high.
        short_side = max(1, round(long_side * shorter / longer))
    if shorter == short_side:
        return size_wh
    width, height = size_wh
    if width < height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def resize(sample: Sample, short_side: int, long_side: int | None, size_wh: tuple[int, int] | None = None) -> Sample:
    """Scale the shorter side to short_side, or less if the longer side would exceed long_side.

    Boxes are in an image of `size_wh`, by default that of the image.
    """
    image, boxes_xyxy, labels = sample
    width, height = size_wh or image.size
    resized = image.resize(resized_size((width, height), short_side, long_side), Image.Resampling.BILINEAR)
    scale_x, scale_y = resized.width / width, resized.height / height
    return resized, boxes_xyxy * torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=torch.float32), labels


def flip(sample: Sample, size_wh: tuple[int, int] | None = None) -> Sample:
    """Mirror horizontally. Boxes are in an image of `size_wh`, by default that of the image."""
    image, boxes_xyxy, labels = sample
    width, _ = size_wh or image.size
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    boxes_xyxy = torch.stack([width - x1, y0, width - x0, y1], -1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes_xyxy, labels


def random_region(rng: random.Random, size_wh: tuple[int, int], least: int, largest: int) -> tuple[int, int, int, int]:
    """Draw a region (x, y, width, height) of the image, each side uniform in least .. min(side, largest)."""
    width = rng.randint(least, min(size_wh[0], largest))
    height = rng.randint(least, min(size_wh[1], largest))
    return rng.randint(0, size_wh[0] - width), rng.randint(0, size_wh[1] - height), width, height


def crop(sample: Sample, x: int, y: int, width: int, height: int) -> Sample:
    """Crop to a region. Boxes are clipped to it and dropped if nothing is left."""
    image, boxes_xyxy, labels = sample
    boxes_xyxy = boxes_xyxy - torch.tensor([x, y, x, y], dtype=torch.float32)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes_xyxy = torch.minimum(boxes_xyxy, limit).clamp(min=0)
    keep = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)
    return image.crop((x, y, x + width, y + height)), boxes_xyxy[keep], labels[keep]


def to_tensors(image: Image.Image, boxes_xyxy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised image [3, h, w], boxes_cxcywh [T, 4] in fractions of the image, labels [T]."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    size = torch.tensor([image.width, image.height] * 2, dtype=torch.float32)
    return normalise(image), torch.cat([(low + high) / 2, high - low], -1) / size, labels


def normalise(image: Image.Image | np.ndarray) -> Tensor:
    """Normalise an RGB image, or uint8 [h, w, 3], by ImageNet's mean and deviation; returns float32 [3, h, w]."""
    pixels = np.array(image, dtype=np.uint8)  # a copy: the tensor must not share memory with a read-only image
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"normalise: image must be RGB or uint8 [h, w, 3], got shape {list(pixels.shape)}")
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format) / 255
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return scaled.sub_(mean).div_(std)


def denormalise(image: Tensor) -> np.ndarray:
    """Invert `normalise`: return a normalised image [3, h, w] as uint8 [h, w, 3]."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (image.detach().to("cpu", torch.float32) * std + mean) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _check_sides(name: str, sides: tuple[int, ...], long_side: int | None) -> None:
    if not sides or min(sides) < 1:
        raise ValueError(f"{name} must be at least 1 pixel, got {sides}")
    if long_side is not None and long_side < max(sides):
        raise ValueError(f"long_side must be None or at least {name} {max(sides)}, got {long_side}")
