"""Boxes and label tags: inside the image, readable, apart from each other, and in the class's colour."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dino.inference import colours, draw, fonts, outlines, tags

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


def test_the_colours_of_classes_are_fixed():
    # Users learn them, and runs are compared: a change needs a reason.
    shown = [colours.class_colour(label) for label in (0, 11, 12, 13, 40, 255)]
    assert shown == [(86, 180, 233), (204, 102, 119), (0, 255, 0), (255, 0, 255), (238, 221, 136), (238, 136, 221)]
    assert colours.class_colour(256) == colours.class_colour(0)


@pytest.mark.parametrize(("count", "least"), [(91, 18), (256, 11)])
def test_colours_of_different_classes_differ(count, least):
    lab = colours._lab(np.array([colours.class_colour(label) for label in range(count)]))
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(count)
    assert distance.min() > least  # of CIELAB; 2.3 is just noticeable side by side


def test_text_can_be_read_on_every_colour():
    shown = [colours.class_colour(label) for label in range(256)]
    assert min(contrast(colour, colours.text_colour(colour)) for colour in shown) >= 4.5


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_has_the_better_of_two_contrasts(colour):
    best = max(contrast(colour, colours.BLACK), contrast(colour, colours.WHITE))
    assert contrast(colour, colours.text_colour(colour)) == best >= 4.5


def test_a_box_is_drawn_in_its_colour_at_its_place():
    colour = colours.class_colour(3)
    drawn = pixels(draw.draw_boxes(GREY, [[50, 30, 120, 90]], [colour], width=3))
    for x, y in ((52, 60), (118, 60), (80, 32), (80, 88)):
        assert tuple(drawn[y, x]) == colour, (x, y)
    assert tuple(drawn[60, 85]) == (128, 128, 128)
    untouched = drawn.copy()
    untouched[30:91, 50:121] = 128
    assert (untouched == 128).all()


def test_a_small_box_stays_visible_on_a_large_one():
    own = [colours.class_colour(0), colours.class_colour(1)]
    small, large = [40, 40, 60, 60], [38, 38, 150, 110]
    for order in ((0, 1), (1, 0)):
        boxes = [(small, large)[i] for i in order]
        drawn = pixels(draw.draw_boxes(GREY, boxes, [own[i] for i in order], width=3))
        assert tuple(drawn[50, 42]) == own[0]


@pytest.mark.parametrize(
    "box",
    [[-50, -50, -10, -10], [300, 10, 320, 30], [60, 50, 40, 70], [math.nan, 0, 10, 10], [0, 0, math.inf, 10]],
)
def test_a_box_that_is_not_in_the_image_is_not_drawn(box):
    assert (pixels(draw.draw_boxes(GREY, [box], [colours.BLACK], ["text"])) == 128).all()


@pytest.mark.parametrize("box", [[-1e9, -1e9, 1e9, 1e9], [199, 119, 400, 400], [0, 0, 0, 0], [100, 50, 100, 50]])
def test_a_box_at_the_border_or_without_size_is_drawn(box):
    assert (pixels(draw.draw_boxes(GREY, [box], [colours.BLACK], [""])) != 128).any()


def places(boxes, texts, size):
    tagged = [(box, colours.BLACK, text) for box, text in zip(boxes, texts, strict=True)]
    return [tag.place for tag in tags.place_tags(tagged, size, letters=tags.font_size(size), width=2)]


corners_and_sizes = st.tuples(*[st.floats(0, 630)] * 2, *[st.floats(1, 80)] * 2)
box_strategy = corners_and_sizes.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=50)
@given(st.lists(box_strategy, min_size=1, max_size=12))
def test_tags_stay_inside_the_image(boxes):
    for x0, y0, x1, y1 in places(boxes, ["person 0.93"] * len(boxes), (640, 640)):
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 640


def test_tags_of_one_place_do_not_cover_each_other():
    boxes = [(200.0, 200.0, 330.0 + i, 300.0 + i) for i in range(6)]
    placed = np.array(places(boxes, [f"person 0.9{i}" for i in range(6)], (640, 480)))
    for i, place in enumerate(placed):
        assert (tags.overlaps(place, placed[:i]) == 0).all()


def test_a_tag_stands_above_its_box_where_there_is_room():
    ((x0, _, _, y1),) = places([(200.0, 200.0, 330.0, 300.0)], ["cat"], (640, 480))
    assert (x0, y1) == (200.0, 200.0)


def test_lines_and_letters_grow_with_the_image():
    assert outlines.line_width((64, 64)) == 1 and tags.font_size((64, 64)) == 10
    assert outlines.line_width((640, 480)) < outlines.line_width((2400, 1600))
    assert tags.font_size((640, 480)) < tags.font_size((2400, 1600))


def test_counts_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"got \(1, 2, 1\)"):
        draw.draw_boxes(GREY, [[0, 0, 5, 5]], [colours.BLACK, colours.WHITE])
    with pytest.raises(ValueError, match=r"got \(1, 1, 0\)"):
        draw.draw_boxes(GREY, [[0, 0, 5, 5]], [colours.BLACK], [])


def test_a_file_that_is_no_font_is_named(tmp_path):
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(ValueError, match=r"font must be a TrueType file.*font\.ttf"):
        fonts.load_font(12, str(tmp_path / "font.ttf"))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_become_rgb(mode):
    assert draw.draw_boxes(GREY.convert(mode), [[5, 5, 50, 50]], [colours.BLACK]).mode == "RGB"


def test_dashes_leave_gaps():
    picture = GREY.copy()
    outlines.dashed_box(ImageDraw.Draw(picture, "RGBA"), (20, 20, 180, 100), colours.WHITE, 2)
    top = pixels(picture)[20, 20:180, 0]
    assert 0.3 < (top == 255).mean() < 0.7


# Small images, many objects, names in any script


def grid(columns, rows, side, step):
    return [
        [x * step + 5, y * step + 30, x * step + 5 + side, y * step + 30 + side]
        for y in range(rows)
        for x in range(columns)
    ]


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((64, 64), (640, 640)),
        ((384, 303), (960, 758)),
        ((960, 20), (960, 20)),
        ((20, 2000), (20, 2000)),
        ((1, 1), (10, 10)),
    ],
)
def test_small_images_are_enlarged_before_drawing(size, drawn):
    assert draw.draw_detections(Image.new("RGB", size), [], [], []).size == drawn
    assert draw.draw_detections(Image.new("RGB", size), [], [], [], scale=1).size == size


def test_boxes_are_enlarged_with_the_image():
    drawn = pixels(draw.draw_detections(Image.new("RGB", (96, 48)), [[24, 12, 72, 36]], [3], ["cat"], width=3))
    assert drawn.shape[:2] == (480, 960)
    for x, y in ((242, 300), (718, 300), (300, 358)):
        assert tuple(drawn[y, x]) == colours.class_colour(3)


@pytest.mark.parametrize(("count", "has_legend"), [(3, False), (11, False), (12, True), (24, True)])
def test_many_objects_of_one_class_get_a_legend(count, has_legend):
    boxes = grid(6, 4, 90, 150)[:count]
    drawn = draw.draw_detections(Image.new("RGB", (960, 640)), boxes, [0] * count, ["coin"] * count, [0.9] * count)
    assert (drawn.height > 640) == has_legend and drawn.width == 960


def test_crowded_tags_make_way_for_a_legend_and_leave_the_objects_visible():
    boxes = grid(30, 20, 24, 31)
    labels = [k % 3 for k in range(len(boxes))]
    names = [("a long name", "another name", "the third name")[label] for label in labels]
    drawn = draw.draw_detections(Image.new("RGB", (960, 660)), boxes, labels, names, [0.9] * len(boxes))
    assert drawn.height > 660
    image = pixels(drawn)
    inside = [image[y0 + 8 : y1 - 8, x0 + 8 : x1 - 8] for x0, y0, x1, y1 in boxes]
    assert np.mean([(part == 0).all() for part in inside]) > 0.6


def test_a_legend_counts_the_classes_and_limits_their_number(monkeypatch):
    written = []
    monkeypatch.setattr(draw, "add_legend", lambda drawn, legend, *rest: written.extend(legend) or drawn)
    boxes = grid(30, 20, 24, 31)
    names = [f"class {k % 50}" for k in range(600)]
    draw.draw_detections(Image.new("RGB", (960, 660)), boxes, [k % 50 for k in range(600)], names, [0.9] * 600)
    assert [key.text for key in written[:1]] == ["class 0 (12)"] and len(written) == 41
    assert written[-1].text == "and 10 more classes" and written[0].colour == colours.class_colour(0)


def test_a_tag_longer_than_the_image_is_shortened():
    font = fonts.load_font(20)
    text = tags.shortened("a very long name of a class 0.98", font, 150)
    assert "..." in text and font.getlength(text) <= 150 and text.endswith("0.98")
    name = "x" * 300
    assert draw.draw_detections(Image.new("RGB", (300, 300)), [[9, 9, 90, 90]], [0], [name], [0.5]).size == (960, 960)


@pytest.mark.parametrize("label", range(0, 40, 3))
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_a_line_of_one_pixel_shows_the_colour_of_the_class(label, ground):
    colour = colours.class_colour(label)
    drawn = pixels(draw.draw_boxes(Image.new("RGB", (100, 80), ground), [[20, 20, 70, 60]], [colour], width=1))
    changed = (drawn != ground).any(-1)
    assert (drawn == colour).all(-1).sum() >= 0.45 * changed.sum() > 0


def test_the_line_of_a_small_object_is_around_it():
    image = Image.new("RGB", (2000, 1500), (9, 9, 9))
    drawn = pixels(draw.draw_boxes(image, [[1000, 700, 1020, 720]], [colours.class_colour(0)]))
    assert (drawn[701:720, 1001:1020] == 9).all() and (drawn != 9).any()


NAMES = [
    "pi\u00e8ce",
    "\u00c4\u00d6\u00dc\u00df",
    "\u0153il",
    "\u0441\u0435\u0440\u0435\u0431\u0440\u043e",
    "\u03b4\u03c1\u03b1\u03c7\u03bc\u03ae",
    "\u0142\u00f3d\u017a",
    "ti\u1ebfng",
    "e\u0301t\u00e9",
]


@pytest.mark.parametrize("name", NAMES)
def test_letters_beyond_ascii_are_legible(name):
    assert fonts.missing_letters([name]) == ""
    font = fonts.font_for(name, 24)
    empty = fonts._drawn(None, "\U0010fffe")
    path = font.path if isinstance(font.path, str) else None
    assert all(
        fonts._drawn(path, letter) not in (empty, fonts._drawn(path, "\U0010fffe"))
        for letter in name
        if letter != "\u0301"
    )


def test_each_name_has_a_font_with_its_letters():
    assert fonts.font_for("coin", 20).getname() == fonts.load_font(20).getname()
    assert fonts.font_for(NAMES[3], 20).getname() != fonts.load_font(20).getname()


def test_letters_that_no_font_has_are_reported_once(monkeypatch):
    unknown = "\U000e1234"  # not assigned
    assert fonts.missing_letters(["cat", f"a{unknown}"]) == unknown
    monkeypatch.setattr(draw, "_reported", set())
    with pytest.warns(UserWarning, match="no font of this system has the letters"):
        draw.draw_detections(GREY, [[5, 5, 50, 50]], [0], [f"a{unknown}"], [0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw.draw_detections(GREY, [[5, 5, 50, 50]], [0], [f"a{unknown}"], [0.5])


def test_a_font_that_is_named_is_used(tmp_path):
    file = next(path for path in fonts._system_fonts() if path.endswith(".ttf"))
    assert fonts.font_for("cat", 20, file).path == file
