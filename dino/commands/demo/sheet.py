"""The demo's picture: images that were not trained on, with their detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dino.commands.demo.digits import DigitsConfig, annotations_of, categories
from dino.commands.demo.sheet_images import sheet_images
from dino.common.text import counted
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
_GREY: Colour = (90, 90, 90)
_WHAT = "digits by unseen writers, on photographs not trained on"


def draw_sheet(checkpoint: Path, config: DigitsConfig, threshold: float, seed: int) -> Image.Image:
    """Draw the detections in images that were not trained on, right and wrong ones marked and counted."""
    detector = Detector.from_checkpoint(checkpoint)
    made = sheet_images(
        *(_SHOWN, seed), image_size=config.image_size, digit_size=config.digit_size, max_digits=config.max_digits
    )
    truth, results = {"images": [], "annotations": [], "categories": categories()}, []
    for image_id, one in enumerate(made, start=1):
        truth["images"].append({"id": image_id})
        truth["annotations"] += annotations_of(image_id, one.digits, len(truth["annotations"]) + 1)
        results += detector.predict(one.image, threshold).to_coco(image_id)
    ids = list(range(1, len(made) + 1))
    pictures = judge(build_sample(results, ids, truth, detector.categories), threshold)
    titles = detector.categories.titles
    return _sheet([_drawn(one.image, picture, titles) for one, picture in zip(made, pictures, strict=True)], pictures)


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
    pen.text((sheet.width - gap, caption / 2), _WHAT, _GREY, font, anchor="rm")
    for place, drawing in enumerate(drawings):
        sheet.paste(drawing, (gap + place % 4 * (tile + gap), caption + place // 4 * (tile + gap)))
    return sheet
