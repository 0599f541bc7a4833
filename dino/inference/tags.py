"""Label tags of boxes: placed beside each other and inside the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw, ImageFont

from dino.inference.colours import BLACK, Colour, text_colour
from dino.inference.fonts import font_for
from dino.inference.outlines import Box


@dataclass(frozen=True)
class Tag:
    """A text in a filled rectangle."""

    place: Box
    text: str
    colour: Colour
    font: ImageFont.FreeTypeFont


def font_size(size: tuple[int, int]) -> int:
    """Return a font size in pixels for an image of `size` (width, height)."""
    return max(10, round(math.sqrt(size[0] * size[1]) * 0.024))


def place_tags(
    tagged: Sequence[tuple[Box, Colour, str]],
    size: tuple[int, int],
    *,
    letters: int,
    width: int,
    font: str | None = None,
) -> list[Tag]:
    """Place the tags of boxes in an image of `size` (width, height), the first best.

    Args:
        tagged: box, colour and text of each tag.
        letters: font size in pixels.
        width: line width in pixels.
        font: a TrueType file; by default the first font with the letters of a text.
    """
    tags: list[Tag] = []
    places, boxes = np.zeros((len(tagged), 4)), np.array([box for box, _, _ in tagged]).reshape(-1, 4)
    for k, (box, colour, text) in enumerate(tagged):
        chosen = font_for(text, letters, font)
        text = shortened(text, chosen, size[0] - 2 * _padding(chosen) - 2)
        place = _place(box, tag_size(text, chosen), width, size, places[:k], boxes)
        places[k] = place
        tags.append(Tag(place, text, colour, chosen))
    return tags


def draw_tags(pen: ImageDraw.ImageDraw, tags: Sequence[Tag]) -> None:
    """Draw tags, the first on top, with their text in black or white."""
    for tag in reversed(tags):
        pen.rectangle(tag.place, fill=(*tag.colour, 255), outline=(*BLACK, 150))
        position = tag.place[0] + _padding(tag.font), (tag.place[1] + tag.place[3]) / 2
        pen.text(position, tag.text, fill=text_colour(tag.colour), font=tag.font, anchor="lm")


def hindering(tags: Sequence[Tag], boxes: Sequence[Box]) -> list[bool]:
    """Return for each tag whether it covers a tenth of itself of an earlier tag, or a third of another box.

    Args:
        tags: one for each of the first boxes.
        boxes: boxes in pixels.
    """
    places, own = np.array([tag.place for tag in tags]).reshape(-1, 4), np.array(boxes).reshape(-1, 4)
    hinders = []
    for k in range(len(tags)):
        on_tags = overlaps(places[k], places[:k]).max(initial=0) / max(_area(places[k : k + 1])[0], 1e-9)
        shares = overlaps(places[k], own) / np.maximum(_area(own), 1e-9)
        shares[k] = 0
        hinders.append(bool(on_tags > 0.1 or shares.max(initial=0) > 1 / 3))
    return hinders


def tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    """Return width and height of a tag in pixels."""
    ascent, descent = font.getmetrics()
    return font.getlength(text) + 2 * _padding(font), ascent + descent + 1.0


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a text that fits a width in pixels, if need be with dots for its middle."""
    kept = len(text)
    cut = text
    while kept > 4 and font.getlength(cut) > width:
        kept -= 1
        cut = f"{text[: kept - kept // 3]}...{text[len(text) - kept // 3 :]}"
    return cut


def overlaps(place: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the common areas [N] of a rectangle [4] with others [N, 4]."""
    low, high = np.maximum(place[:2], others[:, :2]), np.minimum(place[2:], others[:, 2:])
    return (high - low).clip(min=0).prod(1)


def _place(
    box: Box, tag: tuple[float, float], width: int, size: tuple[int, int], taken: np.ndarray, boxes: np.ndarray
) -> Box:
    """Return the first place that covers other tags, and then objects, least: above the box, inside, or below."""
    tag_width, tag_height = tag
    x0, y0, x1, y1 = box
    lefts = (x0, x1 - tag_width)
    tops = (y0 - tag_height, y0 + width, y1, y1 - tag_height - width)
    if y1 - y0 < 3 * tag_height:  # inside, it would cover the object
        tops = (y0 - tag_height, y1)
    candidates = [_inside(left, top, tag_width, tag_height, size) for left in lefts for top in tops]
    candidates += [_inside(x0, y0 + step * tag_height, tag_width, tag_height, size) for step in (1, 2, -2, 3, -3)]

    def covered(place: Box) -> tuple[float, float]:
        here = np.array(place)
        return float(overlaps(here, taken).sum()), float(overlaps(here, boxes).sum())

    return min(candidates, key=covered)


def _inside(left: float, top: float, width: float, height: float, size: tuple[int, int]) -> Box:
    left = max(0.0, min(left, size[0] - 1 - width))
    top = max(0.0, min(top, size[1] - 1 - height))
    return left, top, left + width, top + height


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)


def _padding(font: ImageFont.FreeTypeFont) -> float:
    return max(2.0, font.size * 0.25)
