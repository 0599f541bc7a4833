"""Draw boxes with labels on an image: a constant colour per class, readable label tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageColor, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

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


def class_colour(label: int) -> Colour:
    """Return the colour of a class, the same in every image. Colours repeat after twelve classes."""
    return PALETTE[label % len(PALETTE)]


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever has the higher contrast ratio (WCAG) on `background`."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in background)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else WHITE


@lru_cache(maxsize=64)
def load_font(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """Load a font of `size` pixels: Pillow's own, which has Latin letters only, or the TrueType file at `path`."""
    if path is None:
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType and cannot scale labels. Install its wheel.")
        return font
    try:
        return ImageFont.truetype(path, size)
    except OSError as error:
        raise ValueError(f"font must be a TrueType file that Pillow can read, got {path!r}: {error}") from error


def line_width(size: tuple[int, int]) -> int:
    """Return a line width in pixels for an image of `size` (width, height)."""
    return max(1, round(math.sqrt(size[0] * size[1]) * 0.004))


def font_size(size: tuple[int, int]) -> int:
    """Return a font size in pixels for an image of `size` (width, height)."""
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
    """Draw boxes and their label tags on a copy of `image`.

    Large boxes are drawn first, so that small ones stay visible. Tags are placed in the given order, so that the first
    boxes (the highest scores) get the best places.

    Args:
        boxes_xyxy: N boxes in pixels, clipped to the image; boxes outside are not drawn.
        colours: N colours.
        texts: N tags, or None for no tags; an empty text has no tag.
        font: a TrueType file for names that are not in Latin letters.
        width: line width in pixels; by default it depends on the size of the image.

    Returns:
        An RGB image of the same size.
    """
    if len(boxes_xyxy) != len(colours) or (texts is not None and len(texts) != len(boxes_xyxy)):
        counts = len(boxes_xyxy), len(colours), len(boxes_xyxy) if texts is None else len(texts)
        raise ValueError(f"draw_boxes: boxes, colours and texts must be equally many, got {counts}")
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(drawn, "RGBA")
    width = line_width(drawn.size) if width is None else width
    boxes = [clip_box(box, drawn.size) for box in boxes_xyxy]
    for i in sorted(range(len(boxes)), key=lambda i: -_area(boxes[i])):
        box = boxes[i]
        if box is not None:
            outline_box(pen, box, colours[i], width)
    if texts is not None:
        tagged = [(b, c, t) for b, c, t in zip(boxes, colours, texts, strict=True) if b is not None and t]
        draw_tags(pen, tagged, drawn.size, width=width, font=font)
    return drawn


def draw_tags(
    pen: ImageDraw.ImageDraw,
    tagged: Sequence[tuple[Box, Colour, str]],
    size: tuple[int, int],
    *,
    width: int,
    font: str | None = None,
) -> None:
    """Draw the label tags of boxes in an image of `size` (width, height), the first on top and best placed."""
    letters = load_font(font_size(size), font)
    places: list[Box] = []
    for box, _, text in tagged:
        places.append(_place_tag(box, text, letters, width, size, places))
    for place, (_, colour, text) in reversed(list(zip(places, tagged, strict=True))):
        _draw_tag(pen, place, text, colour, letters)


def clip_box(box: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Return the part of a box inside an image of `size` (width, height), or None if it is empty."""
    x0, y0, x1, y1 = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return None
    x0, x1 = max(x0, 0.0), min(x1, size[0] - 1.0)
    y0, y1 = max(y0, 0.0), min(y1, size[1] - 1.0)
    return (x0, y0, x1, y1) if x1 >= x0 and y1 >= y0 else None


def outline_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int, opacity: float = 1.0) -> None:
    """Draw a box as a coloured line between two thin ones of contrasting lightness, visible on any ground."""
    alpha = round(255 * opacity)
    x0, y0, x1, y1 = (round(value) for value in box)
    pen.rectangle((x0, y0, x1, y1), outline=(*text_colour(colour), alpha * 3 // 5), width=width + 2)
    inner = (x0 + 1, y0 + 1, x1 - 1, y1 - 1)
    if inner[2] > inner[0] and inner[3] > inner[1]:
        pen.rectangle(inner, outline=(*colour, alpha), width=width)
    else:
        pen.rectangle((x0, y0, x1, y1), outline=(*colour, alpha), width=width)


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


def _draw_tag(pen: ImageDraw.ImageDraw, place: Box, text: str, colour: Colour, font: ImageFont.FreeTypeFont) -> None:
    """Draw a filled rectangle with its text in black or white."""
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
    """Return the first place that covers other tags least: above the box, inside, below, or at the right."""
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
