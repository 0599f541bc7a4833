"""The demo's picture: validation images with their detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dino.common.text import counted
from dino.data import CocoIndex, open_image
from dino.evaluation.errors import Kind, Mark, Picture, judge
from dino.evaluation.sample import build_sample
from dino.inference.colours import Colour
from dino.inference.detector import Detector
from dino.inference.draw import draw_boxes
from dino.inference.fonts import load_font
from dino.inference.outlines import dashed_box
from dino.report.pictures import corners

_SHOWN = 8
_ZOOM = 2
_RIGHT: Colour = (0, 130, 95)
_WRONG: Colour = (205, 80, 0)


def draw_detections(index: CocoIndex, checkpoint: Path, threshold: float) -> Image.Image:
    """Draw images from all over the data with their detections, right and wrong ones marked and counted."""
    detector = Detector.from_checkpoint(checkpoint)
    titles = detector.categories.titles
    several = [position for position in range(len(index)) if len(index.training_boxes(position)[0]) > 1]
    chosen = several[:: max(1, len(several) // _SHOWN)][:_SHOWN] or list(range(min(_SHOWN, len(index))))
    images = [open_image(index.image_path(position)) for position in chosen]
    ids = [int(index.image_ids[position]) for position in chosen]
    results = [
        result
        for image, image_id in zip(images, ids, strict=True)
        for result in detector.predict(image, threshold).to_coco(image_id)
    ]
    pictures = judge(build_sample(results, ids, index.ground_truth(), detector.categories), threshold)
    return _sheet([_drawn(image, picture, titles) for image, picture in zip(images, pictures, strict=True)], pictures)


def _drawn(image: Image.Image, picture: Picture, titles: Sequence[str]) -> Image.Image:
    """Draw what was found, each in the colour of its kind, and dashed what was missed."""
    large = image.resize((_ZOOM * image.width, _ZOOM * image.height), Image.Resampling.BICUBIC)
    boxes = [corners(mark, _ZOOM) for mark in picture.found]
    texts = [f"{titles[mark.label]} {mark.score:.2f}" for mark in picture.found]
    drawn = draw_boxes(large, boxes, [_colour(mark) for mark in picture.found], texts, width=2)
    pen = ImageDraw.Draw(drawn, "RGBA")
    for mark in picture.true:
        if mark.kind is Kind.MISSED:
            dashed_box(pen, corners(mark, _ZOOM), _WRONG, 3)
    return drawn


def _colour(mark: Mark) -> Colour:
    return _RIGHT if mark.kind is Kind.FOUND else _WRONG


def _sheet(drawings: Sequence[Image.Image], pictures: Sequence[Picture]) -> Image.Image:
    """Arrange square drawings, four to a row, under a line with the counts."""
    tile, gap, caption = drawings[0].width, 8, 40
    rows = -(-len(drawings) // 4)
    sheet = Image.new("RGB", (4 * (tile + gap) + gap, caption + rows * (tile + gap)), "white")
    pen, font, x = ImageDraw.Draw(sheet), load_font(20), float(gap)
    true = [mark for picture in pictures for mark in picture.true]
    right = sum(mark.kind is Kind.FOUND for mark in true)
    wrong = sum(mark.kind is not Kind.FOUND for picture in pictures for mark in picture.found)
    missed = sum(mark.kind is Kind.MISSED for mark in true)
    for text, colour in (
        (f"{right} of {counted(len(true), 'digit')} right (green),", _RIGHT),
        (f"{counted(wrong, 'wrong detection')} (orange),", _WRONG),
        (f"{missed} missed (dashed)", _WRONG),
    ):
        pen.text((x, caption / 2), text, colour, font, anchor="lm")
        x += font.getlength(f"{text} ")
    for place, drawing in enumerate(drawings):
        sheet.paste(drawing, (gap + place % 4 * (tile + gap), caption + place // 4 * (tile + gap)))
    return sheet
