"""Colours of classes: the same in every image and every run, and as different from each other as possible."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import ImageColor

Colour = tuple[int, int, int]

# Okabe and Ito's seven colours, then five of Paul Tol's: distinguishable with any colour vision.
PALETTE: tuple[Colour, ...] = tuple(
    ImageColor.getrgb(code)[:3]  # type: ignore[misc]
    for code in (
        *("#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#0072B2"),
        *("#882255", "#999933", "#332288", "#44AA99", "#CC6677"),
    )
)
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
_COUNT = 256
_LIGHTNESS = (30, 90)  # of colours beyond the palette, in 0..100: neither black nor white
_LEAST_CHROMA = 30


def class_colour(label: int) -> Colour:
    """Return the colour of a class: one of the palette's twelve, then others. Colours repeat after 256 classes."""
    return _colours()[label % _COUNT]


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever has the higher contrast ratio (WCAG) on `background`."""
    luminance = float(_linear(np.array(background, dtype=float)) @ (0.2126, 0.7152, 0.0722))
    return BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else WHITE


@lru_cache(maxsize=1)
def _colours() -> tuple[Colour, ...]:
    """Return the palette, followed each time by the colour that differs most from all before."""
    steps = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1]) & (chroma > _LEAST_CHROMA)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = list(PALETTE)
    distance = np.linalg.norm(lab[:, None] - _lab(np.array(PALETTE))[None], axis=-1).min(1)
    while len(chosen) < _COUNT:
        farthest = int(distance.argmax())
        red, green, blue = candidates[farthest].tolist()
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=-1))
    return tuple(chosen)


def _linear(rgb: np.ndarray) -> np.ndarray:
    """Return linear values in 0..1 of sRGB values in 0..255."""
    value = rgb / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB coordinates [..., 3] of sRGB colours [..., 3], in which distance is difference to the eye."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = _linear(rgb) @ to_xyz.T / (0.9505, 1.0, 1.089)
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
