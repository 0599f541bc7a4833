"""Outlines of boxes that stay visible on any ground."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import ImageDraw

from dino.inference.colours import Colour, text_colour

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def line_width(size: tuple[int, int]) -> int:
    """Return a line width in pixels for an image of `size` (width, height)."""
    return max(1, round(math.sqrt(size[0] * size[1]) * 0.004))


def clip_box(box: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Return the part of a box inside an image of `size` (width, height), or None if it is empty."""
    x0, y0, x1, y1 = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return None
    x0, x1 = max(x0, 0.0), min(x1, size[0] - 1.0)
    y0, y1 = max(y0, 0.0), min(y1, size[1] - 1.0)
    return (x0, y0, x1, y1) if x1 >= x0 and y1 >= y0 else None


def outline_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int, opacity: float = 1.0) -> None:
    """Draw a box as a coloured line between two thin ones of contrasting lightness, visible on any ground.

    A line of one pixel has only the outer one, which would otherwise hide its colour.
    """
    alpha = round(255 * opacity)
    x0, y0, x1, y1 = (round(value) for value in box)
    around = width + 2 if width > 1 else 1
    pen.rectangle((x0, y0, x1, y1), outline=(*text_colour(colour), alpha * 3 // 5), width=around)
    inner = (x0 + 1, y0 + 1, x1 - 1, y1 - 1)
    if inner[2] > inner[0] and inner[3] > inner[1]:
        pen.rectangle(inner, outline=(*colour, alpha), width=width)
    else:
        pen.rectangle((x0, y0, x1, y1), outline=(*colour, alpha), width=width)


def around_object(box: Box, width: int, size: tuple[int, int]) -> tuple[Box, int]:
    """Return where to draw the box of an object and the line width: a small one thinner and around the object.

    Args:
        box: the box inside the image.
        width: line width of large boxes.
        size: width and height of the image.
    """
    if min(box[2] - box[0], box[3] - box[1]) >= 8 * width:
        return box, width
    width = max(1, round(width * 0.6))
    reach = width + 1
    around = clip_box((box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach), size)
    return around or box, width


def dashed_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int, dash: float | None = None) -> None:
    """Draw a box in dashes of `dash` pixels, by default four line widths."""
    x0, y0, x1, y1 = box
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = math.dist(start, end)
        dash = dash or 4.0 * width
        for i in range(math.ceil(length / (2 * dash))):
            ends = [min(i * 2 * dash, length), min(i * 2 * dash + dash, length)]
            points = [
                (start[0] + (end[0] - start[0]) * t / length, start[1] + (end[1] - start[1]) * t / length) for t in ends
            ]
            pen.line(points, fill=(*colour, 255), width=width)
