"""Captions below drawings: title, text and legend."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dino.inference.fonts import font_for
from dino.inference.legend import INK, PAPER, Key, draw_key, legend_rows


def add_caption(drawing: Image.Image, title: str, text: str, legend: Sequence[Key] = ()) -> Image.Image:
    """Return a drawing with a strip below it: title, text wrapped to its width, and legend.

    A narrow drawing is centred on a wider page, to have room for the text.
    """
    width = max(drawing.width, 560)
    size = max(13, round(width * 0.0185))
    large, small = font_for(title, round(size * 1.35)), font_for(text, size)
    margin = size
    lines = _wrap(text, small, width - 2 * margin)
    rows = legend_rows(legend, size, width - 2 * margin)
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
            draw_key(pen, margin + x, y, key, size)
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
