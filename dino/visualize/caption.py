"""Captions below drawings: title, text and legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from dino.inference.draw import Colour, dashed_box, load_font, outline_box
from dino.visualize.view import GROUND

INK: Colour = (24, 24, 24)
PAPER: Colour = (250, 250, 248)


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    text: str
    colour: Colour
    mark: Literal["box", "dashes", "dot"] = "box"


def add_caption(drawing: Image.Image, title: str, text: str, legend: Sequence[Key] = ()) -> Image.Image:
    """Return a drawing with a strip below it: title, text wrapped to its width, and legend.

    A narrow drawing is centred on a wider page, to have room for the text.
    """
    width = max(drawing.width, 560)
    size = max(13, round(width * 0.0185))
    large, small = load_font(round(size * 1.35)), load_font(size)
    margin = size
    lines = _wrap(text, small, width - 2 * margin)
    rows = _legend_rows(legend, small, width - 2 * margin)
    line = round(size * 1.4)
    height = 2 * margin + round(size * 1.9) + line * len(lines) + (round(size * 0.5) if rows else 0) + line * len(rows)
    page = Image.new("RGB", (width, drawing.height + height), PAPER)
    page.paste(drawing, ((width - drawing.width) // 2, 0))
    pen = ImageDraw.Draw(page, "RGBA")
    y = drawing.height + margin
    pen.text((margin, y), title, fill=INK, font=large)
    y += round(size * 1.9)
    for words in lines:
        pen.text((margin, y), words, fill=INK, font=small)
        y += line
    y += round(size * 0.5)
    for row in rows:
        for x, key in row:
            _draw_key(pen, margin + x, y, key, small)
        y += line
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _legend_rows(legend: Sequence[Key], font: ImageFont.FreeTypeFont, width: int) -> list[list[tuple[float, Key]]]:
    rows: list[list[tuple[float, Key]]] = []
    x = float(width) + 1
    for key in legend:
        needed = font.size * 2.1 + font.getlength(key.text)
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, key))
        x += needed + font.size * 1.4
    return rows


def _draw_key(pen: ImageDraw.ImageDraw, x: float, y: float, key: Key, font: ImageFont.FreeTypeFont) -> None:
    side = font.size
    box = (x, y + side * 0.1, x + side * 1.5, y + side * 1.2)
    inset, width = side * 0.2, max(2, round(side * 0.14))
    inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
    # Colours are chosen for faded images, so they are shown on their grey.
    pen.rectangle(box, fill=GROUND)
    if key.mark == "dot":
        middle, radius = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), side * 0.32
        dot = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
        pen.ellipse(dot, fill=key.colour, outline=INK)
    elif key.mark == "dashes":
        dashed_box(pen, inner, key.colour, width, side * 0.16)
    else:
        outline_box(pen, inner, key.colour, width)
    pen.text((x + side * 2, y), key.text, fill=INK, font=font)
