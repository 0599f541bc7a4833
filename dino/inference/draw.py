"""Boxes with labels on a picture, by Pillow: colours that stay with a class, label tags that can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageColor, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# Okabe and Ito's seven colours, then five of Paul Tol's that differ from them: told apart with any colour vision.
PALETTE: tuple[Colour, ...] = tuple(
    ImageColor.getrgb(code)[:3]  # type: ignore[misc]
    for code in (
        *("#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#0072B2"),
        *("#882255", "#999933", "#332288", "#44AA99", "#CC6677"),
    )
)
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


def class_colour(label: int) -> Colour:
    """The colour of a class: the same label has the same colour in every picture; they repeat after twelve."""
    return PALETTE[label % len(PALETTE)]


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever has the higher contrast ratio (WCAG) on `background`."""
    luminance = _luminance(background)
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


def _luminance(colour: Colour) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(maxsize=64)
def load_font(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels: Pillow's own, which has Latin letters only, or the TrueType file at `path`."""
    if path is None:
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType, so labels cannot be scaled; install its wheel")
        return font
    try:
        return ImageFont.truetype(path, size)
    except OSError as error:
        raise ValueError(f"font must be a TrueType file that Pillow can read, got {path!r}: {error}") from error


def line_width(size: tuple[int, int]) -> int:
    """Line width in pixels that suits a picture of `size` (width, height)."""
    return max(1, round(math.sqrt(size[0] * size[1]) * 0.004))


def font_size(size: tuple[int, int]) -> int:
    """Font size in pixels that suits a picture of `size` (width, height)."""
    return max(10, round(math.sqrt(size[0] * size[1]) * 0.024))


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    colours: Sequence[Colour],
    texts: Sequence[str] | None = None,
    *,
    font: str | None = None,
    width: int | None = None,
) -> Image.Image:
    """A copy of `image` with boxes and their label tags.

    Large boxes are drawn first, so that small ones stay visible; tags are placed in the order given, so that
    the first boxes (the highest scores) get the best places.

    Args:
        boxes_xyxy: N boxes in pixels; parts outside the picture are cut off, an empty rest is not drawn.
        colours: N colours.
        texts: N tags, or None for no tags; an empty text has no tag.
        font: a TrueType file for names that are not in Latin letters.
        width: line width in pixels; by default it follows from the size of the picture.

    Returns:
        An RGB image of the same size.
    """
    if len(boxes_xyxy) != len(colours) or (texts is not None and len(texts) != len(boxes_xyxy)):
        counts = len(boxes_xyxy), len(colours), len(boxes_xyxy) if texts is None else len(texts)
        raise ValueError(f"draw_boxes needs as many colours and texts as boxes, got {counts}")
    picture = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(picture, "RGBA")
    width = line_width(picture.size) if width is None else width
    boxes = [clip_box(box, picture.size) for box in boxes_xyxy]
    for i in sorted(range(len(boxes)), key=lambda i: -_area(boxes[i])):
        box = boxes[i]
        if box is not None:
            outline_box(pen, box, colours[i], width)
    if texts is not None:
        tagged = [(b, c, t) for b, c, t in zip(boxes, colours, texts, strict=True) if b is not None and t]
        draw_tags(pen, tagged, picture.size, width=width, font=font)
    return picture


def draw_tags(
    pen: ImageDraw.ImageDraw,
    tagged: Sequence[tuple[Box, Colour, str]],
    size: tuple[int, int],
    *,
    width: int,
    font: str | None = None,
) -> None:
    """Label tags of boxes inside a picture of `size` (width, height), the first with the best places and on top."""
    letters = load_font(font_size(size), font)
    places: list[Box] = []
    for box, _, text in tagged:
        places.append(_place_tag(box, text, letters, width, size, places))
    for place, (_, colour, text) in reversed(list(zip(places, tagged, strict=True))):
        _draw_tag(pen, place, text, colour, letters)


def clip_box(box: Sequence[float], size: tuple[int, int]) -> Box | None:
    """The part of a box inside a picture of `size` (width, height), or None where nothing is left of it."""
    x0, y0, x1, y1 = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return None
    x0, x1 = max(x0, 0.0), min(x1, size[0] - 1.0)
    y0, y1 = max(y0, 0.0), min(y1, size[1] - 1.0)
    return (x0, y0, x1, y1) if x1 >= x0 and y1 >= y0 else None


def outline_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int, opacity: float = 1.0) -> None:
    """A coloured line between two thin ones of the opposite lightness: visible on light and on dark ground."""
    alpha = round(255 * opacity)
    x0, y0, x1, y1 = (round(value) for value in box)
    pen.rectangle((x0, y0, x1, y1), outline=(*text_colour(colour), alpha * 3 // 5), width=width + 2)
    inner = (x0 + 1, y0 + 1, x1 - 1, y1 - 1)
    if inner[2] > inner[0] and inner[3] > inner[1]:
        pen.rectangle(inner, outline=(*colour, alpha), width=width)
    else:
        pen.rectangle((x0, y0, x1, y1), outline=(*colour, alpha), width=width)


def dashed_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int, dash: float | None = None) -> None:
    """The outline of a box in dashes, of four line widths unless `dash` says how many pixels."""
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


def _draw_tag(pen: ImageDraw.ImageDraw, place: Box, text: str, colour: Colour, font: ImageFont.FreeTypeFont) -> None:
    """A filled rectangle with its text in black or white."""
    pen.rectangle(place, fill=(*colour, 255), outline=(*BLACK, 150))
    middle = (place[1] + place[3]) / 2
    pen.text((place[0] + _padding(font), middle), text, fill=text_colour(colour), font=font, anchor="lm")


def _padding(font: ImageFont.FreeTypeFont) -> float:
    return max(2.0, font.size * 0.25)


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    ascent, descent = font.getmetrics()
    return font.getlength(text) + 2 * _padding(font), ascent + descent + 1.0


def _place_tag(
    box: Box,
    text: str,
    font: ImageFont.FreeTypeFont,
    width: int,
    size: tuple[int, int],
    taken: list[Box],
) -> Box:
    """Above the box where that is free; else inside, below or at the right, whichever covers other tags least."""
    tag_width, tag_height = _tag_size(text, font)
    x0, y0, x1, y1 = box
    lefts = (x0, x1 - tag_width)
    tops = (y0 - tag_height, y0 + width, y1, y1 - tag_height - width)
    candidates = [_inside(left, top, tag_width, tag_height, size) for left in lefts for top in tops]
    candidates += [_inside(x0, y0 + step * tag_height, tag_width, tag_height, size) for step in (1, 2, -2, 3, -3)]
    return min(candidates, key=lambda place: sum(_overlap(place, other) for other in taken))


def _inside(left: float, top: float, width: float, height: float, size: tuple[int, int]) -> Box:
    left = max(0.0, min(left, size[0] - 1 - width))
    top = max(0.0, min(top, size[1] - 1 - height))
    return left, top, left + width, top + height


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(box: Box | None) -> float:
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
