"""Boxes and label tags: inside the image, readable, apart from each other, and in the class's colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dino.inference import draw

GREY = Image.new("RGB", (200, 120), (128, 128, 128))


def pixels(image):
    return np.asarray(image).astype(int)


def luminance(colour):
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_class_has_one_colour_and_near_classes_differ():
    assert [draw.class_colour(label) for label in range(12)] == [draw.class_colour(label + 12) for label in range(12)]
    assert len({draw.class_colour(label) for label in range(12)}) == 12


def test_text_can_be_read_on_every_colour():
    assert min(contrast(colour, draw.text_colour(colour)) for colour in draw.PALETTE) >= 4.5


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_has_the_better_of_two_contrasts(colour):
    best = max(contrast(colour, draw.BLACK), contrast(colour, draw.WHITE))
    assert contrast(colour, draw.text_colour(colour)) == best >= 4.5


def test_a_box_is_drawn_in_its_colour_at_its_place():
    colour = draw.class_colour(3)
    drawn = pixels(draw.draw_boxes(GREY, [[50, 30, 120, 90]], [colour], width=3))
    for x, y in ((52, 60), (118, 60), (80, 32), (80, 88)):
        assert tuple(drawn[y, x]) == colour, (x, y)
    assert tuple(drawn[60, 85]) == (128, 128, 128)
    untouched = drawn.copy()
    untouched[30:91, 50:121] = 128
    assert (untouched == 128).all()


def test_a_small_box_stays_visible_on_a_large_one():
    colours = [draw.class_colour(0), draw.class_colour(1)]
    small, large = [40, 40, 60, 60], [38, 38, 150, 110]
    for order in ((0, 1), (1, 0)):
        boxes = [(small, large)[i] for i in order]
        drawn = pixels(draw.draw_boxes(GREY, boxes, [colours[i] for i in order], width=3))
        assert tuple(drawn[50, 42]) == colours[0]


@pytest.mark.parametrize(
    "box",
    [[-50, -50, -10, -10], [300, 10, 320, 30], [60, 50, 40, 70], [math.nan, 0, 10, 10], [0, 0, math.inf, 10]],
)
def test_a_box_that_is_not_in_the_image_is_not_drawn(box):
    assert (pixels(draw.draw_boxes(GREY, [box], [draw.BLACK], ["text"])) == 128).all()


@pytest.mark.parametrize("box", [[-1e9, -1e9, 1e9, 1e9], [199, 119, 400, 400], [0, 0, 0, 0], [100, 50, 100, 50]])
def test_a_box_at_the_border_or_without_size_is_drawn(box):
    assert (pixels(draw.draw_boxes(GREY, [box], [draw.BLACK], [""])) != 128).any()


def places(boxes, texts, size):
    font, taken = draw.load_font(draw.font_size(size)), []
    for box, text in zip(boxes, texts, strict=True):
        taken.append(draw._place_tag(box, text, font, 2, size, taken))
    return taken


corners_and_sizes = st.tuples(*[st.floats(0, 630)] * 2, *[st.floats(1, 80)] * 2)
box_strategy = corners_and_sizes.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=50)
@given(st.lists(box_strategy, min_size=1, max_size=12))
def test_tags_stay_inside_the_image(boxes):
    for x0, y0, x1, y1 in places(boxes, ["person 0.93"] * len(boxes), (640, 640)):
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 640


def test_tags_of_one_place_do_not_cover_each_other():
    boxes = [(200.0, 200.0, 330.0 + i, 300.0 + i) for i in range(6)]
    tags = places(boxes, [f"person 0.9{i}" for i in range(6)], (640, 480))
    for i, tag in enumerate(tags):
        assert all(draw._overlap(tag, other) == 0 for other in tags[:i])


def test_a_tag_stands_above_its_box_where_there_is_room():
    ((x0, _, _, y1),) = places([(200.0, 200.0, 330.0, 300.0)], ["cat"], (640, 480))
    assert (x0, y1) == (200.0, 200.0)


def test_lines_and_letters_grow_with_the_image():
    assert draw.line_width((64, 64)) == 1 and draw.font_size((64, 64)) == 10
    assert draw.line_width((640, 480)) < draw.line_width((2400, 1600))
    assert draw.font_size((640, 480)) < draw.font_size((2400, 1600))


def test_counts_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"got \(1, 2, 1\)"):
        draw.draw_boxes(GREY, [[0, 0, 5, 5]], [draw.BLACK, draw.WHITE])
    with pytest.raises(ValueError, match=r"got \(1, 1, 0\)"):
        draw.draw_boxes(GREY, [[0, 0, 5, 5]], [draw.BLACK], [])


def test_a_file_that_is_no_font_is_named(tmp_path):
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(ValueError, match=r"font must be a TrueType file.*font\.ttf"):
        draw.load_font(12, str(tmp_path / "font.ttf"))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_become_rgb(mode):
    assert draw.draw_boxes(GREY.convert(mode), [[5, 5, 50, 50]], [draw.BLACK]).mode == "RGB"


def test_dashes_leave_gaps():
    picture = GREY.copy()
    draw.dashed_box(ImageDraw.Draw(picture, "RGBA"), (20, 20, 180, 100), draw.WHITE, 2)
    top = pixels(picture)[20, 20:180, 0]
    assert 0.3 < (top == 255).mean() < 0.7
