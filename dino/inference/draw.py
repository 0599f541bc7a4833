"""Draw detections on an image: a constant colour per class, and tags or a legend for the names."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dino.common.text import counted
from dino.inference.colours import Colour, class_colour
from dino.inference.fonts import missing_letters
from dino.inference.legend import Key, add_legend
from dino.inference.outlines import Box, around_object, clip_box, line_width, outline_box
from dino.inference.tags import Tag, draw_tags, font_size, hindering, place_tags

_LEAST_SIDE = 960  # pixels of the longer side: smaller images are enlarged
_LARGEST_SCALE = 10.0
_MANY = 12  # boxes of one class: their tags would say one thing many times
_MOST_KEYS = 40
_reported: set[str] = set()


def draw_detections(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    font: str | None = None,
    width: int | None = None,
    scale: float | None = None,
) -> Image.Image:
    """Draw N detections on a copy of an image, best score first; see `Detections.draw`.

    Args:
        boxes_xyxy: boxes in pixels of the image, clipped to it; boxes outside are not drawn.
        labels: classes, for their colours.
        names: names of the classes.
        scores: for the tags; None writes none.
        font: a TrueType file; by default the first font with the letters of a name.
        width: line width in pixels.
        scale: factor by which the image is enlarged; by default small images are enlarged.

    Returns:
        An RGB image, with a legend below if the tags do not fit.
    """
    report_missing_letters(names, font)
    names = [unicodedata.normalize("NFC", name) for name in names]
    drawn, boxes = _enlarged(image.convert("RGB"), boxes_xyxy, scale)
    pen = ImageDraw.Draw(drawn, "RGBA")
    shown = [(i, box) for i, box in enumerate(clip_box(box, drawn.size) for box in boxes) if box is not None]
    order = [i for i, _ in shown]
    colours = [class_colour(labels[i]) for i in order]
    places = _outline(pen, [box for _, box in shown], colours, drawn.size, width)
    numbers = ["" if scores is None else f"{scores[i]:.2f}" for i in order]
    line = line_width(drawn.size) if width is None else width
    letters, few = font_size(drawn.size), len({labels[i] for i in order}) > 1 or len(order) < _MANY
    for size in (letters, max(10, round(letters * 0.75))) if few else ():
        texts = [f"{names[i]} {number}".rstrip() for i, number in zip(order, numbers, strict=True)]
        tags = place_tags(
            list(zip(places, colours, texts, strict=True)), drawn.size, letters=size, width=line, font=font
        )
        if sum(hindering(tags, places)) <= 0.15 * len(tags):
            draw_tags(pen, tags)
            return drawn
    draw_tags(pen, _small_tags(places, colours, numbers, drawn.size, line))
    counts = Counter((labels[i], names[i]) for i in order)
    legend = [Key(f"{name} ({count})", class_colour(label)) for (label, name), count in counts.most_common(_MOST_KEYS)]
    if len(counts) > _MOST_KEYS:
        legend.append(Key(f"and {counted(len(counts) - _MOST_KEYS, 'more class', 'more classes')}", (110, 110, 110)))
    return add_legend(drawn, legend, max(12, round(letters * 0.9)), font)


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    colours: Sequence[Colour],
    texts: Sequence[str] | None = None,
    *,
    font: str | None = None,
    width: int | None = None,
) -> Image.Image:
    """Draw boxes and their label tags on a copy of `image`, all of them and in its size.

    Large boxes are drawn first, so that small ones stay visible. Tags are placed in the given order, so that the first
    boxes (the highest scores) get the best places.

    Args:
        boxes_xyxy: N boxes in pixels, clipped to the image; boxes outside are not drawn.
        colours: N colours.
        texts: N tags, or None for no tags; an empty text has no tag.
        font: a TrueType file; by default the first font with the letters of a text.
        width: line width in pixels; by default it depends on the sizes of the image and of the box.

    Returns:
        An RGB image of the same size.
    """
    if len(boxes_xyxy) != len(colours) or (texts is not None and len(texts) != len(boxes_xyxy)):
        counts = len(boxes_xyxy), len(colours), len(boxes_xyxy) if texts is None else len(texts)
        raise ValueError(f"draw_boxes: boxes, colours and texts must be equally many, got {counts}")
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(drawn, "RGBA")
    boxes = [clip_box(box, drawn.size) for box in boxes_xyxy]
    shown = [(box, colour) for box, colour in zip(boxes, colours, strict=True) if box is not None]
    places = _outline(pen, [box for box, _ in shown], [colour for _, colour in shown], drawn.size, width)
    if texts is not None:
        report_missing_letters(texts, font)
        shown_texts = [text for box, text in zip(boxes, texts, strict=True) if box is not None]
        tagged = [(p, c, t) for p, (_, c), t in zip(places, shown, shown_texts, strict=True) if t]
        line = line_width(drawn.size) if width is None else width
        draw_tags(pen, place_tags(tagged, drawn.size, letters=font_size(drawn.size), width=line, font=font))
    return drawn


def report_missing_letters(texts: Sequence[str], font: str | None = None) -> None:
    """Warn once for each letter that no font has."""
    new = sorted(set(missing_letters(texts, font)) - _reported)
    if new:
        _reported.update(new)
        warnings.warn(missing_letters_text("".join(new), font), stacklevel=3)


def missing_letters_text(letters: str, font: str | None = None) -> str:
    """Return a message about letters that cannot be drawn."""
    _reported.update(letters)
    where = f"the font {font} lacks" if font is not None else "no font of this system has"
    return f"{where} the letters {letters[:40]!r}: they are drawn as empty boxes. Pass a font that has them."


def _enlarged(
    image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], scale: float | None
) -> tuple[Image.Image, Sequence[Sequence[float]]]:
    """Return a copy of an image, enlarged by `scale` or if it is small, and its boxes."""
    if scale is None:
        scale = min(max(1.0, _LEAST_SIDE / max(image.size)), _LARGEST_SCALE)
    if scale == 1:
        return image.copy(), boxes_xyxy
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    x, y = size[0] / image.width, size[1] / image.height
    boxes = [[x0 * x, y0 * y, x1 * x, y1 * y] for x0, y0, x1, y1 in boxes_xyxy]
    return image.resize(size, Image.Resampling.BICUBIC), boxes


def _outline(
    pen: ImageDraw.ImageDraw, boxes: Sequence[Box], colours: Sequence[Colour], size: tuple[int, int], width: int | None
) -> list[Box]:
    """Draw boxes, the large ones first, so that small ones stay visible; return where they are drawn."""
    lines = [around_object(box, line_width(size), size) if width is None else (box, width) for box in boxes]
    for i in sorted(range(len(boxes)), key=lambda i: -_area(boxes[i])):
        outline_box(pen, lines[i][0], colours[i], lines[i][1])
    return [box for box, _ in lines]


def _small_tags(
    boxes: Sequence[Box], colours: Sequence[Colour], numbers: Sequence[str], size: tuple[int, int], line: int
) -> list[Tag]:
    """Return tags with the scores alone, without those that would cover other tags or objects."""
    if not any(numbers):
        return []
    tagged = list(zip(boxes, colours, numbers, strict=True))
    tags = place_tags(tagged, size, letters=max(10, round(font_size(size) * 0.6)), width=line)
    return [tag for tag, hinders in zip(tags, hindering(tags, boxes), strict=True) if not hinders]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
