"""Compose the images of the demo's sheet: digits by unseen writers on photographs that were not trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dino.commands.demo.digit_images import Box, Sources, load_sources, paint

_FEWEST_DIGITS = 3
_CANDIDATES = 60
_MOST_OVERLAP = 0.02
_FACE: Box = (155, 130, 225, 215)


@dataclass(frozen=True)
class SheetImage:
    """An image, and the value and box of each digit on it."""

    image: Image.Image
    digits: list[tuple[int, Box]]


def sheet_images(
    count: int, seed: int, *, image_size: int, digit_size: tuple[int, int], max_digits: int
) -> list[SheetImage]:
    """Return images on different pieces of photographs, each with at least three digits.

    The photographs are the part of scikit-learn's flower that is not trained on and, if matplotlib's sample data are
    installed, the portrait of Grace Hopper.
    """
    sources = load_sources()["valid"]
    rng = random.Random(f"{seed}/sheet")
    photographs = [(photograph, []) for photograph in sources.photographs] + _portrait()
    images = []
    for _ in range(count):
        # Of the photograph with the most area for each of its pieces.
        photograph, taken = max(photographs, key=lambda one: one[0].width * one[0].height / (len(one[1]) + 1))
        taken.append(_piece(rng, photograph, taken))
        background = photograph.resize((image_size, image_size), Image.Resampling.BICUBIC, box=_corners(taken[-1]))
        images.append(_with_digits(rng, background, sources, digit_size, max_digits))
    rng.shuffle(images)
    return images


def _portrait() -> list[tuple[Image.Image, list[Box]]]:
    """Return the portrait and its face, which stays without digits; nothing if it is not installed."""
    try:
        from matplotlib.cbook import get_sample_data

        file: Any = get_sample_data("grace_hopper.jpg", asfileobj=False)
        with Image.open(file) as image:
            return [(image.convert("RGB"), [_FACE])]
    except (ImportError, OSError):  # installed without its sample data
        return []


def _piece(rng: random.Random, photograph: Image.Image, taken: list[Box]) -> Box:
    """Return a square that hardly overlaps those taken before, with more contrast than others."""
    shorter = min(photograph.size)
    candidates = []
    for _ in range(_CANDIDATES):
        side = rng.randint(shorter // 3, shorter // 2)
        x, y = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
        candidates.append((x, y, side, side))
    apart = [box for box in candidates if _overlap(box, taken) <= _MOST_OVERLAP]
    if not apart:
        return min(candidates, key=lambda box: _overlap(box, taken))
    grey = photograph.convert("L")
    return max(apart, key=lambda box: np.asarray(grey.crop(_corners(box))).std())


def _overlap(box: Box, others: list[Box]) -> float:
    """Return the largest share of the box, or of another one, that both cover."""
    x, y, width, height = box
    shares = [0.0]
    for left, top, w, h in others:
        both = max(0, min(x + width, left + w) - max(x, left)) * max(0, min(y + height, top + h) - max(y, top))
        shares.append(both / min(width * height, w * h))
    return max(shares)


def _with_digits(
    rng: random.Random, background: Image.Image, sources: Sources, digit_size: tuple[int, int], max_digits: int
) -> SheetImage:
    while True:
        image = background.copy()
        digits = paint(rng, image, sources, digit_size=digit_size, max_digits=max_digits)
        if len(digits) >= min(_FEWEST_DIGITS, max_digits):
            return SheetImage(image, digits)


def _corners(box: Box) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height
