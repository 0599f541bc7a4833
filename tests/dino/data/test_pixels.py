"""Pixels of every kind become 8 bits with their brightness, or an error says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data import ImageError, open_image, to_rgb
from dino.data.pixels import to_bytes
from dino.inference.images import load_image

RAMP = np.linspace(0, 1, 24 * 16).reshape(16, 24)
INTEGERS = ("uint16", "int16", "int32", "uint32", "int64")


def ramp(bits: int, kind: str) -> np.ndarray:
    return (RAMP * (2**bits - 1)).round().astype(kind)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(kind, bits) for kind in INTEGERS for bits in (8, 10, 12, 14, 16) if (kind, bits) != ("int16", 16)],
)
def test_grey_of_every_depth_keeps_its_brightness_through_every_door(bits: int, kind: str, tmp_path: Path) -> None:
    pixels, expected = ramp(bits, kind), (RAMP * 255)[..., None]
    doors = {"array": pixels, "colour": np.repeat(pixels[..., None], 3, 2), "tensor": torch.from_numpy(pixels)}
    if kind in ("uint16", "int32"):
        doors["pil"] = Image.fromarray(pixels)
        for name in ("a.png", "a.tif") if kind == "uint16" else ("a.tif",):
            Image.fromarray(pixels).save(tmp_path / name)
            doors[name] = tmp_path / name
    for name, given in doors.items():
        assert np.abs(np.asarray(load_image(given)) - expected).max() <= 1.5, name
    if "a.tif" in doors:
        assert np.abs(np.asarray(open_image(tmp_path / "a.tif", size_wh=(24, 16))) - expected).max() <= 1.5


def test_transparency_does_not_decide_the_depth() -> None:
    pixels = np.dstack([ramp(12, "uint16")] * 3 + [np.full((16, 24), 65535, np.uint16)])
    assert np.abs(np.asarray(load_image(pixels)) - (RAMP * 255)[..., None]).max() <= 1.5


@pytest.mark.parametrize("kind", ["uint16", "int32", "int64"])
@pytest.mark.parametrize(("largest", "brightest"), [(0, 0), (1, 1), (255, 255), (256, 64), (1024, 64), (65535, 255)])
def test_the_largest_value_decides_the_depth(kind: str, largest: int, brightest: int) -> None:
    assert to_bytes(np.array([[0, largest]], dtype=kind)).tolist() == [[0, brightest]]


def test_truth_values_are_black_and_white() -> None:
    assert to_bytes(np.array([[True, False]])).tolist() == [[255, 0]]


def test_decimal_pixels_in_0_to_1_are_read_from_files_too(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "f.tif")
    assert np.abs(np.asarray(open_image(tmp_path / "f.tif")) - (RAMP * 255)[..., None]).max() <= 0.51


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), -1, np.int32), r"0\.\.65535, got -1 to -1"),
        (np.full((4, 4), 65536, np.int32), r"0\.\.65535, got 65536 to 65536"),
        (np.full((4, 4), np.nan), r"0\.\.1, got NaN"),
        (np.full((4, 4), np.inf), r"0\.\.1, got inf"),
        (np.full((4, 4), 1.01), r"0\.\.1, got 1\.01"),
        (np.full((4, 4), "x"), "got <U1"),
        (np.full((4, 4), 1j), "got complex128"),
        (np.full((4, 4), None), "got object"),
        (np.zeros((0, 4)), r"no pixels|\[0, 4\]"),
        (np.zeros((4, 4, 5), np.uint8), r"\[4, 4, 5\]"),
        (np.zeros(4, np.uint8), r"got \[4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got \[2, 4, 4, 3\]"),
    ],
)
def test_pixels_without_a_reading_are_an_error_in_words(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"predict: .*{message}"):
        load_image(pixels)


def test_a_pil_image_without_a_reading_is_an_error_in_words(tmp_path: Path) -> None:
    for image in (Image.new("RGB", (0, 5)), Image.new("L", (5, 0))):
        with pytest.raises(ImageError, match="no pixels"):
            load_image(image)
    with pytest.raises(ImageError, match=r"got -3 to -3.*mode I"):
        to_rgb(Image.fromarray(np.full((4, 4), -3, np.int32)))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"predict: .*cut\.png cannot be decoded"):
        load_image(Image.open(tmp_path / "cut.png"))
