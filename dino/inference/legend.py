"""Legends: what the colours of a drawing mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from dino.inference.colours import Colour
from dino.inference.fonts import font_for
from dino.inference.outlines import dashed_box, outline_box

INK: Colour = (24, 24, 24)
PAPER: Colour = (250, 250, 248)
GROUND: Colour = (110, 110, 110)


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    text: str
    colour: Colour
    mark: Literal["box", "dashes", "dot"] = "box"


def legend_rows(legend: Sequence[Key], size: int, width: int, font: str | None = None) -> list[list[tuple[float, Key]]]:
    """Arrange the entries in rows of at most `width` pixels, each with its distance from the left.

    Args:
        size: font size in pixels.
        font: a TrueType file; by default the first font with the letters of an entry.
    """
    rows: list[list[tuple[float, Key]]] = []
    x = float(width) + 1
    for key in legend:
        needed = key_width(key, size, font)
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, key))
        x += needed + size * 1.4
    return rows


def key_width(key: Key, size: int, font: str | None = None) -> float:
    """Return the width of an entry in pixels."""
    return size * 2.1 + font_for(key.text, size, font).getlength(key.text)


def draw_key(pen: ImageDraw.ImageDraw, x: float, y: float, key: Key, size: int, font: str | None = None) -> None:
    """Draw an entry with its mark on grey, as on a faded image."""
    box = (x, y + size * 0.1, x + size * 1.5, y + size * 1.2)
    inset, width = size * 0.2, max(2, round(size * 0.14))
    inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
    pen.rectangle(box, fill=GROUND)
    if key.mark == "dot":
        middle, radius = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), size * 0.32
        dot = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
        pen.ellipse(dot, fill=key.colour, outline=INK)
    elif key.mark == "dashes":
        dashed_box(pen, inner, key.colour, width, size * 0.16)
    else:
        outline_box(pen, inner, key.colour, width)
    pen.text((x + size * 2, y), key.text, fill=INK, font=font_for(key.text, size, font))


def add_legend(drawing: Image.Image, legend: Sequence[Key], size: int, font: str | None = None) -> Image.Image:
    """Return a drawing with its legend in a strip below; wider if an entry needs it, the drawing at the left."""
    margin, line = round(size * 0.7), round(size * 1.5)
    width = max(drawing.width, *(round(key_width(key, size, font)) + 2 * margin for key in legend))
    rows = legend_rows(legend, size, width - 2 * margin, font)
    page = Image.new("RGB", (width, drawing.height + 2 * margin + line * len(rows)), PAPER)
    page.paste(drawing, (0, 0))
    pen = ImageDraw.Draw(page, "RGBA")
    for number, row in enumerate(rows):
        for x, key in row:
            draw_key(pen, margin + x, drawing.height + margin + number * line, key, size, font)
    return page
