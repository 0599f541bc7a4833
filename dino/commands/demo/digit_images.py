"""Paint digits on pieces of photographs: the images of the demo's data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Box = tuple[int, int, int, int]
"""x, y, width, height, pixels."""

# scikit-learn's digits are sorted by writer, so the last fifth is by writers unseen in training.
_TRAINING_DIGITS = 1437


@dataclass(frozen=True)
class Sources:
    digits: np.ndarray  # [N, 8, 8], 0..16
    values: np.ndarray  # [N], 0..9
    photographs: tuple[Image.Image, ...]


def load_sources() -> dict[str, Sources]:
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ImportError as error:
        raise ImportError(
            'the digits data set needs scikit-learn. Install it: pip install "dino-kernels[demo]"'
        ) from error
    data: Any = load_digits()
    china = Image.fromarray(load_sample_image("china.jpg"))
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    middle = flower.width // 2
    left, right = (flower.crop((x, 0, x + middle, flower.height)) for x in (0, middle))
    train, valid = slice(None, _TRAINING_DIGITS), slice(_TRAINING_DIGITS, None)
    return {
        "train": Sources(data.images[train], data.target[train], (china, left)),
        "valid": Sources(data.images[valid], data.target[valid], (right,)),
    }


def compose(
    rng: random.Random, sources: Sources, *, image_size: int, **options: Any
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """Return an image, and the value and box of each digit on it. The options are those of `paint`."""
    image = _background(rng, image_size, sources.photographs)
    return image, paint(rng, image, sources, **options)


def paint(
    rng: random.Random,
    image: Image.Image,
    sources: Sources,
    *,
    digit_size: tuple[int, int],
    max_digits: int,
    min_digits: int = 1,
    overlap: float = 0.0,
) -> list[tuple[int, Box]]:
    """Paint digits on a square image; return the value and box of each. The options are those of `DigitsConfig`."""
    digits: list[tuple[int, Box]] = []
    for _ in range(rng.randint(min_digits, max_digits)):
        index = rng.randrange(len(sources.values))
        stencil = _stencil(sources.digits[index], rng.randint(*digit_size))
        place = _free_place(rng, image.width, stencil.size, [box for _, box in digits], overlap)
        if place is None:
            continue  # no room left; the first digit always finds room
        _draw(rng, image, stencil, place)
        digits.append((int(sources.values[index]), (*place, *stencil.size)))
    return digits


def _background(rng: random.Random, size: int, photographs: tuple[Image.Image, ...]) -> Image.Image:
    # By area, so that every part of the photographs is equally likely.
    photograph = rng.choices(photographs, [photo.width * photo.height for photo in photographs])[0]
    shorter = min(photograph.size)
    side = rng.randint(min(size, shorter) // 2, shorter)
    x, y = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    crop = photograph.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _stencil(digit: np.ndarray, longer_side: int) -> Image.Image:
    """Return the ink of a digit as an opacity map, cropped to the ink on all four sides."""
    # Padded, so that strokes at the border of the 8x8 image fade out like the others.
    padded = np.pad(np.clip(digit * (255 / 16), 0, 255).astype(np.uint8), 2)
    ink = Image.fromarray(padded)
    box = _ink_box(ink.resize((ink.width * 16, ink.height * 16), Image.Resampling.BICUBIC))
    left, top, right, bottom = (edge / 16 for edge in box)
    scale = longer_side / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    smooth = ink.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    # Steeper edges: eight pixels enlarged to forty are otherwise blurred.
    return smooth.point([min(255, max(0, round((level - 80) * 2.2))) for level in range(256)])


def _ink_box(ink: Image.Image) -> Box:
    box = ink.point([255 if level > 100 else 0 for level in range(256)]).getbbox()
    assert box is not None  # every digit of the set has strokes darker than this
    return box


def _free_place(
    rng: random.Random, image_size: int, size: tuple[int, int], taken: list[Box], overlap: float
) -> tuple[int, int] | None:
    """Return a random place whose box shares at most a part, `overlap`, of itself or another box; None if none is."""
    width, height = size
    gap = 2 if overlap == 0 else 0
    for _ in range(100):
        x, y = rng.randint(0, image_size - width), rng.randint(0, image_size - height)
        if all(
            max(0, min(x + width, left + w) - max(x, left) + gap) * max(0, min(y + height, top + h) - max(y, top) + gap)
            <= overlap * min(width * height, w * h)
            for left, top, w, h in taken
        ):
            return x, y
    return None


def _draw(rng: random.Random, image: Image.Image, stencil: Image.Image, place: tuple[int, int]) -> None:
    """Paint the digit in a random colour whose brightness contrasts with the ground."""
    x, y = place
    box = (x, y, x + stencil.width, y + stencil.height)
    red, green, blue = np.asarray(image.crop(box)).reshape(-1, 3).mean(0)
    # A soft halo of the mean colour keeps thin strokes readable on leaves and roof tiles. It follows the strokes: a
    # rectangle would draw the answer into the image.
    margin = 8
    halo = ImageOps.expand(stencil, margin).filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.GaussianBlur(3))
    halo = halo.point([round(level * 0.6) for level in range(256)])
    image.paste((round(red), round(green), round(blue)), (x - margin, y - margin), halo)
    brightness = _luma(red, green, blue)
    target = brightness + rng.uniform(110, 160) * (-1 if brightness > 127 else 1)
    tint = [rng.uniform(-40, 40) for _ in range(3)]
    ink = [min(255, max(0, round(target + part - _luma(*tint)))) for part in tint]
    image.paste((ink[0], ink[1], ink[2]), box, stencil)


def _luma(red: float, green: float, blue: float) -> float:
    return 0.299 * red + 0.587 * green + 0.114 * blue
