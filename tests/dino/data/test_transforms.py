"""The augmentation is the official one, and boxes stay on their objects."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data import EvalTransform, TrainTransform, denormalise, normalise, resized_size
from dino.data.transforms import crop, flip, random_region, resize

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "resize_sizes.json").read_text())
SMALL = TrainTransform(short_sides=(96, 128, 160), long_side=224, crop_short_sides=(100, 120), crop_size=(64, 120))
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def picture(rng: random.Random, width: int, height: int) -> tuple[Image.Image, torch.Tensor, torch.Tensor]:
    """Rectangles in the cells of a 2x2 grid, each in the colour of its label."""
    pixels = np.zeros((height, width, 3), np.uint8)
    boxes = []
    for label, colour in enumerate(COLOURS):
        left, top = (width // 2) * (label % 2), (height // 2) * (label // 2)
        x0, x1 = left + rng.randint(2, width // 8), left + rng.randint(width // 4, width // 2 - 2)
        y0, y1 = top + rng.randint(2, height // 8), top + rng.randint(height // 4, height // 2 - 2)
        pixels[y0:y1, x0:x1] = colour
        boxes.append([x0, y0, x1, y1])
    return Image.fromarray(pixels), torch.tensor(boxes, dtype=torch.float32), torch.arange(4)


def painted(image: torch.Tensor, label: int) -> np.ndarray:
    """Where the colour of a label is, bool [h, w]."""
    pixels = denormalise(image).astype(int)
    return np.abs(pixels - np.array(COLOURS[label])).max(-1) < 128


def extent(where: np.ndarray) -> list[int]:
    columns, rows = np.flatnonzero(where.any(0)), np.flatnonzero(where.any(1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def assert_boxes_fit(image: torch.Tensor, boxes_cxcywh: torch.Tensor, labels: torch.Tensor) -> None:
    height, width = image.shape[1:]
    centres, sizes = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], -1) * torch.tensor([width, height] * 2)
    for box, label in zip(corners.tolist(), labels.tolist(), strict=True):
        if min(box[2] - box[0], box[3] - box[1]) > 3:  # thinner remains of a crop fade into the black around them
            assert extent(painted(image, label)) == pytest.approx(box, abs=1.01)
    for label in set(range(4)) - set(labels.tolist()):
        assert painted(image, label).sum() == 0


@pytest.mark.parametrize("seed", range(60))
def test_boxes_stay_on_their_objects_through_small_augmentation(seed: int) -> None:
    rng = random.Random(seed)
    sample = picture(rng, rng.randint(90, 260), rng.randint(90, 260))
    image, boxes, labels = SMALL(*sample, rng)
    assert image.dtype == torch.float32 and boxes.dtype == torch.float32 and labels.dtype == torch.int64
    assert_boxes_fit(image, boxes, labels)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_stay_on_their_objects_through_the_official_augmentation(seed: int) -> None:
    rng = random.Random(seed)
    image, boxes, labels = TrainTransform()(*picture(rng, 640, 480), rng)
    assert_boxes_fit(image, boxes, labels)
    assert max(image.shape) <= 1333 and min(image.shape[1:]) <= 800


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 333), (1400, 300)])
def test_boxes_stay_on_their_objects_in_evaluation(width: int, height: int) -> None:
    image, boxes, labels = EvalTransform()(*picture(random.Random(0), width, height))
    assert image.shape[1:] == resized_size((width, height), 800, 1333)[::-1]
    assert labels.tolist() == [0, 1, 2, 3]
    assert_boxes_fit(image, boxes, labels)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "{w}x{h}-{size}-{max_size}".format(**case))
def test_resized_size_is_the_official_one(case: dict) -> None:
    assert resized_size((case["w"], case["h"]), case["size"], case["max_size"]) == (case["out_w"], case["out_h"])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 900), st.one_of(st.none(), st.integers(900, 1400)))
def test_resizing_keeps_the_aspect_and_the_limits(width: int, height: int, short: int, long: int | None) -> None:
    new_width, new_height = resized_size((width, height), short, long)
    assert min(new_width, new_height) >= 1
    assert min(new_width, new_height) <= short or (width, height) == (new_width, new_height)
    # The shorter side is rounded, and the longer one follows from it.
    scale = min(new_width, new_height) / min(width, height)
    assert abs(max(new_width, new_height) - max(width, height) * scale) < 1
    if long is not None:
        rounding = max(width, height) / min(width, height)
        assert max(new_width, new_height) <= long + rounding


def test_resize_averages_when_it_shrinks() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checkers[..., None], 3, -1).astype(np.uint8))
    small, _, _ = resize((image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 8, None)
    assert small.size == (8, 8)
    assert np.abs(np.asarray(small).astype(int) - 127).max() <= 8  # one sample per pixel would give 0 or 255


def test_flip_mirrors_boxes_exactly() -> None:
    boxes = torch.tensor([[10.0, 5.0, 30.0, 20.0], [0.0, 0.0, 100.0, 50.0]])
    image = Image.new("RGB", (100, 50))
    image.putpixel((10, 7), (255, 255, 255))
    flipped, mirrored, labels = flip((image, boxes, torch.tensor([4, 2])))
    assert mirrored.tolist() == [[70, 5, 90, 20], [0, 0, 100, 50]]
    assert labels.tolist() == [4, 2]
    assert flipped.getpixel((89, 7)) == (255, 255, 255)


def test_crop_clips_boxes_and_drops_only_those_without_extent() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 50.0, 50.0],  # clipped
            [30.0, 20.0, 60.0, 40.0],  # inside
            [0.0, 0.0, 30.0, 20.0],  # touches the corner: nothing left
            [79.5, 59.5, 200.0, 200.0],  # half a pixel is left: no test of area or centre
            [90.0, 70.0, 95.0, 75.0],  # outside
        ]
    )
    image, cropped, labels = crop((Image.new("RGB", (100, 80)), boxes, torch.arange(5)), 30, 20, 50, 40)
    assert image.size == (50, 40)
    assert cropped.tolist() == [[0, 0, 20, 30], [0, 0, 30, 20], [49.5, 39.5, 50, 40]]
    assert labels.tolist() == [0, 1, 3]


def test_a_crop_may_leave_no_box() -> None:
    image, boxes, labels = crop(
        (Image.new("RGB", (9, 9)), torch.tensor([[0.0, 0, 3, 3]]), torch.tensor([1])), 4, 4, 5, 5
    )
    assert image.size == (5, 5) and boxes.shape == (0, 4) and labels.shape == (0,)


def test_crop_regions_reach_every_size_and_place_that_is_allowed() -> None:
    rng = random.Random(0)
    regions = [random_region(rng, (12, 7), 5, 9) for _ in range(4000)]
    assert {width for _, _, width, _ in regions} == {5, 6, 7, 8, 9}
    assert {height for _, _, _, height in regions} == {5, 6, 7}
    assert {(x, width) for x, _, width, _ in regions} == {(x, w) for w in range(5, 10) for x in range(12 - w + 1)}
    assert {(y, height) for _, y, _, height in regions} == {(y, h) for h in range(5, 8) for y in range(7 - h + 1)}


def test_half_of_the_images_are_flipped_and_half_are_cropped() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 20, 64]]), torch.zeros(1, dtype=torch.int64)
    image = Image.new("RGB", (64, 64))
    transform = TrainTransform(short_sides=(64,), long_side=None, crop_short_sides=(64,), crop_size=(32, 33))
    flipped, cropped, count = 0, 0, 2000
    for seed in range(count):
        _, result, _ = transform(image, boxes, labels, random.Random(seed))
        whole = len(result) == 1 and result[0, 2] == 20 / 64
        cropped += not whole
        flipped += whole and result[0, 0] > 0.5
    assert abs(cropped / count - 0.5) < 0.05
    assert abs(flipped / (count - cropped) - 0.5) < 0.06


def test_official_sizes_are_the_defaults() -> None:
    transform = TrainTransform()
    assert transform.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (transform.long_side, transform.crop_short_sides, transform.crop_size) == (1333, (400, 500, 600), (384, 600))
    assert (transform.flip_probability, transform.crop_probability) == (0.5, 0.5)
    assert (EvalTransform().short_side, EvalTransform().long_side) == (800, 1333)


def test_every_short_side_is_used() -> None:
    transform = TrainTransform(short_sides=(20, 30, 40), crop_short_sides=(25, 35), crop_size=(10, 25))
    sizes = set()
    for seed in range(200):
        image, _, _ = transform(
            Image.new("RGB", (50, 50)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), random.Random(seed)
        )
        sizes.add(min(image.shape[1:]))
    assert sizes == {20, 30, 40}


def test_probability_zero_switches_flips_and_crops_off() -> None:
    transform = TrainTransform(
        short_sides=(50,), crop_short_sides=(50,), crop_size=(20, 40), crop_probability=0, flip_probability=0
    )
    sample = (Image.new("RGB", (50, 50)), torch.tensor([[0.0, 0, 10, 50]]), torch.tensor([0]))
    for seed in range(50):
        assert transform(*sample, random.Random(seed))[1].tolist() == [[pytest.approx(0.1), 0.5, pytest.approx(0.2), 1]]


def test_only_the_given_generator_decides() -> None:
    sample = picture(random.Random(5), 100, 100)
    before = pickle.dumps((random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()))
    first, again = (SMALL(*sample, random.Random(7)) for _ in range(2))
    assert pickle.dumps((random.getstate(), torch.get_rng_state().tolist(), np.random.get_state())) == before
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], SMALL(*sample, random.Random(seed))[0]) for seed in range(3))


def test_inputs_are_not_changed() -> None:
    image, boxes, labels = picture(random.Random(5), 100, 100)
    pixels, before = np.asarray(image).copy(), boxes.clone()
    for seed in range(10):
        SMALL(image, boxes, labels, random.Random(seed))
    assert torch.equal(boxes, before) and np.array_equal(np.asarray(image), pixels)


def test_normalise_is_imagenet_and_denormalise_its_exact_inverse() -> None:
    levels = np.stack([np.arange(256, dtype=np.uint8)] * 3, -1)[None]  # [1, 256, 3]
    tensor = normalise(levels)
    assert tensor.shape == (3, 1, 256) and tensor.is_contiguous()
    expected = (levels[0].T / 255.0 - np.array([[0.485], [0.456], [0.406]])) / np.array([[0.229], [0.224], [0.225]])
    assert np.abs(tensor[:, 0].double().numpy() - expected).max() < 1e-6
    assert np.array_equal(denormalise(tensor), levels)
    assert torch.equal(normalise(Image.fromarray(levels)), tensor)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (3, 4, 4)])
def test_normalise_names_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be RGB or uint8 \[h, w, 3\], got shape"):
        normalise(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"short_sides": ()}, "short_sides must be at least 1 pixel, got ()"),
        ({"short_sides": (0, 5)}, "short_sides must be at least 1 pixel"),
        ({"long_side": 700}, "long_side must be None or at least short_sides 800, got 700"),
        ({"crop_size": (384, 300)}, "crop_size must be"),
        ({"crop_size": (401, 600)}, "crop_size must be"),
        ({"crop_size": (384,)}, "crop_size must be"),
        ({"flip_probability": 1.5}, "flip_probability must be in 0..1, got 1.5"),
        ({"crop_probability": -1}, "crop_probability must be in 0..1, got -1"),
    ],
)
def test_impossible_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)")):
        TrainTransform(**arguments)


def test_impossible_evaluation_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="long_side must be None or at least short_side 800, got 600"):
        EvalTransform(long_side=600)
