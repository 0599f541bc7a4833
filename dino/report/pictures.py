"""Draw the worst images: truth beside detections, with the errors marked."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from dino.common.text import counted, shorten
from dino.data import Categories
from dino.evaluation.errors import ERRORS, Kind, Mark, Picture
from dino.inference.colours import Colour
from dino.inference.draw import draw_boxes
from dino.inference.fonts import load_font
from dino.inference.outlines import dashed_box

# Okabe and Ito: distinguishable with any colour vision.
KIND_COLOURS: dict[Kind, Colour] = {
    Kind.FOUND: (0, 158, 115),
    Kind.MISSED: (213, 94, 0),
    Kind.WRONG_CLASS: (204, 121, 167),
    Kind.POOR_BOX: (240, 228, 66),
    Kind.DUPLICATE: (86, 180, 233),
    Kind.FALSE_ALARM: (213, 94, 0),
}
SIDE = 520
"""Pixels of the longer side of a drawing."""
_LARGEST_FACTOR = 16
_SMALLEST_SIDE = 96
_MOST_TAGS = 12
_GREY: Colour = (236, 238, 241)


def draw_truth(image: Image.Image, picture: Picture, titles: Sequence[str]) -> Image.Image:
    """Draw the true boxes; those that were not found have their class as a tag."""
    return _draw(image, picture.true, titles)


def draw_found(image: Image.Image, picture: Picture, titles: Sequence[str]) -> Image.Image:
    """Draw the detections; wrong ones have class and score as a tag, and missed boxes are dashed."""
    drawn, factor = _draw(image, picture.found, titles), _factor(image)
    pen = ImageDraw.Draw(drawn, "RGBA")
    for mark in picture.true:
        if mark.kind is Kind.MISSED:
            dashed_box(pen, corners(mark, factor), KIND_COLOURS[Kind.MISSED], 2)
    return drawn


def describe(picture: Picture, categories: Categories, most: int = 6) -> list[str]:
    """Return a line for each error, detections of high score first; at most `most`, and the number of the others."""
    titles = categories.titles
    lines = [f"missed: {titles[mark.label]}" for mark in picture.true if mark.kind is Kind.MISSED]
    for mark in picture.found:
        if mark.kind is not Kind.FOUND:
            other = "" if mark.other is None else f", is {titles[mark.other]}"
            lines.append(f"{mark.kind}: {titles[mark.label]} {mark.score:.2f}{other}")
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])


def error_counts(picture: Picture) -> str:
    """Return the number of errors of each kind in words."""
    marks = [*picture.found, *(mark for mark in picture.true if mark.kind is Kind.MISSED)]
    counts = Counter(mark.kind for mark in marks)
    missed = [f"{counts[Kind.MISSED]} missed"] if counts[Kind.MISSED] else []
    return shorten(missed + [counted(counts[kind], kind) for kind in ERRORS[1:] if counts[kind]])


def sheet(rows: Iterable[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """Put drawings side by side, (title, truth, detections) each, in two columns on one white image."""
    rows = list(rows)
    font, line, gap = load_font(15), 30, 12
    cell_width = 2 * SIDE + gap
    columns = min(2, len(rows))
    heights = [max(a.height, b.height) + line + gap for _, a, b in rows]
    bands = [max(heights[k : k + columns]) for k in range(0, len(rows), columns)]
    page = Image.new("RGB", (columns * (cell_width + 2 * gap), sum(bands) + gap), "white")
    pen, y = ImageDraw.Draw(page), gap
    for k, (title, truth, found) in enumerate(rows):
        x = gap + (k % columns) * (cell_width + 2 * gap)
        while font.getlength(title) > cell_width:
            title = title[: -max(4, len(title) // 20)] + "..."
        pen.text((x, y + line / 2), title, fill=(30, 30, 30), font=font, anchor="lm")
        page.paste(truth, (x, y + line))
        page.paste(found, (x + SIDE + gap, y + line))
        if k % columns == columns - 1:
            y += bands[k // columns]
    return page


def data_uri(image: Image.Image) -> str:
    """Return an image as the text of a JPEG that a page can hold."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def heading(number: int, name: str, picture: Picture) -> str:
    """Return the title of an image in the sheet."""
    return f"{number}  {name}: {counted(picture.num_errors, 'error')}, {error_counts(picture)}"


def _draw(image: Image.Image, marks: Sequence[Mark], titles: Sequence[str]) -> Image.Image:
    factor = _factor(image)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    # Pixels of small images stay visible as pixels.
    resample = Image.Resampling.NEAREST if factor >= 4 else Image.Resampling.LANCZOS
    canvas = Image.new("RGB", (max(size[0], _SMALLEST_SIDE), max(size[1], _SMALLEST_SIDE)), _GREY)
    canvas.paste(image.resize(size, resample))
    # Errors first: the first tags get the best places.
    ordered = sorted(marks, key=lambda mark: (mark.kind is Kind.FOUND, -(mark.score or 0)))
    texts = ["" if mark.kind is Kind.FOUND or k >= _MOST_TAGS else _tag(mark, titles) for k, mark in enumerate(ordered)]
    return draw_boxes(
        canvas, [corners(mark, factor) for mark in ordered], [KIND_COLOURS[mark.kind] for mark in ordered], texts
    )


def _tag(mark: Mark, titles: Sequence[str]) -> str:
    return titles[mark.label] if mark.score is None else f"{titles[mark.label]} {mark.score:.2f}"


def _factor(image: Image.Image) -> float:
    return min(SIDE / max(image.size), _LARGEST_FACTOR)


def corners(mark: Mark, factor: float) -> tuple[float, float, float, float]:
    """Return the corners x0, y0, x1, y1 of a box in an image enlarged by a factor."""
    x, y, width, height = mark.xywh
    return x * factor, y * factor, (x + width) * factor, (y + height) * factor
