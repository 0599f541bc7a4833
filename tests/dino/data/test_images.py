"""Image files of every odd kind either open as RGB, right side up, or are named in an error."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.data import ImageError, open_image, to_rgb

# A bright left half and a dark right half, wider than high.
WIDTH, HEIGHT = 24, 16
GREY = np.repeat([[200] * (WIDTH // 2) + [40] * (WIDTH // 2)], HEIGHT, 0).astype(np.uint8)


def rgb() -> Image.Image:
    return Image.fromarray(np.stack([GREY, GREY // 2, 255 - GREY], -1))


def grey_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(int)


MODES = {
    "grey.png": lambda: Image.fromarray(GREY),
    "grey.jpg": lambda: Image.fromarray(GREY),
    "grey_alpha.png": lambda: Image.fromarray(GREY).convert("LA"),
    "bits.png": lambda: Image.fromarray(GREY).point([255 if v > 99 else 0 for v in range(256)]).convert("1"),
    "grey16.png": lambda: Image.fromarray(GREY.astype(np.uint16) * 256 + 99),
    "grey16.tif": lambda: Image.fromarray(GREY.astype(np.uint16) * 256 + 99),
    "grey32.tif": lambda: Image.fromarray(GREY.astype(np.int32) * 256 + 99),
}
COLOUR_MODES = {
    "colour.png": rgb,
    "colour.webp": rgb,
    "colour.bmp": rgb,
    "palette.png": lambda: rgb().quantize(16),
    "palette.gif": lambda: rgb().quantize(16),
    "alpha.png": lambda: rgb().convert("RGBA"),
    "cmyk.jpg": lambda: rgb().convert("CMYK"),
    "cmyk.tif": lambda: rgb().convert("CMYK"),
    "ycbcr.jpg": lambda: rgb().convert("YCbCr"),
}


@pytest.mark.parametrize("name", MODES)
def test_grey_images_of_every_depth_keep_their_brightness(name: str, tmp_path: Path) -> None:
    MODES[name]().save(tmp_path / name)
    image = open_image(tmp_path / name, image_id=1, size_wh=(WIDTH, HEIGHT))
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    expected = np.where(GREY > 99, 255, 0) if name == "bits.png" else GREY.astype(int)
    assert np.abs(np.asarray(image).astype(int) - expected[..., None]).max() <= 4


@pytest.mark.parametrize("name", COLOUR_MODES)
def test_colour_images_of_every_mode_keep_their_colours(name: str, tmp_path: Path) -> None:
    COLOUR_MODES[name]().save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(tmp_path / name, image_id=1, size_wh=(WIDTH, HEIGHT))
    assert image.mode == "RGB"
    # Away from the middle, where JPEG and WebP blur the edge.
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(rgb()).astype(int))
    assert difference[:, [0, 1, 2, 3, -4, -3, -2, -1]].max() <= 12


def test_a_palette_with_transparency_opens_without_a_warning(tmp_path: Path) -> None:
    image = rgb().quantize(16)
    image.save(tmp_path / "p.png", transparency=bytes([0, 128] + [255] * 14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "p.png").mode == "RGB"


def test_pixels_of_unknown_range_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif: cannot be read as an image: .*mode F"):
        open_image(tmp_path / "f.tif")
    with pytest.raises(ImageError, match="mode F"):
        to_rgb(Image.fromarray(GREY.astype(np.float32)))


def save_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb().save(path, quality=95, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_stored_pixels_ignore_the_orientation_of_the_camera(orientation: int, tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", orientation)
    image = open_image(tmp_path / "a.jpg", size_wh=(WIDTH, HEIGHT))
    assert image.size == (WIDTH, HEIGHT)
    assert grey_of(image)[:, :4].mean() > grey_of(image)[:, -4:].mean() + 20


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_image_is_turned_where_only_then_it_has_the_stated_size(orientation: int, tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", orientation)
    image = open_image(tmp_path / "a.jpg", size_wh=(HEIGHT, WIDTH))
    assert image.size == (HEIGHT, WIDTH)
    # Orientations 5 and 6 bring the left column to the top, 7 and 8 to the bottom.
    top, bottom = grey_of(image)[:4].mean(), grey_of(image)[-4:].mean()
    assert (top > bottom + 20) if orientation in (5, 6) else (bottom > top + 20)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_an_orientation_that_keeps_the_size_does_not_excuse_another_size(orientation: int, tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", orientation)
    with pytest.raises(ImageError, match="has 24x16 pixels, but the annotation file states 16x24"):
        open_image(tmp_path / "a.jpg", size_wh=(HEIGHT, WIDTH))


def test_without_a_stated_size_the_image_is_upright(tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", 6)
    assert open_image(tmp_path / "a.jpg").size == (HEIGHT, WIDTH)
    save_turned(tmp_path / "b.jpg", 3)
    assert grey_of(open_image(tmp_path / "b.jpg"))[:, :4].mean() < 100


def test_another_size_than_stated_is_an_error(tmp_path: Path) -> None:
    rgb().save(tmp_path / "a.png")
    path = re.escape(str(tmp_path / "a.png"))
    with pytest.raises(
        ImageError, match=rf"{path} \(image 12\): has 24x16 pixels, but the annotation file states 24x17"
    ):
        open_image(tmp_path / "a.png", image_id=12, size_wh=(24, 17))


def encoded(kind: str) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = io.BytesIO()
    noise.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.9])
def test_truncated_files_are_named(kind: str, kept: float, tmp_path: Path) -> None:
    data = encoded(kind)
    (tmp_path / "cut").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"cut \(image 5\): cannot be read as an image: ."):
        open_image(tmp_path / "cut", image_id=5, size_wh=(64, 64))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_damaged_files_open_or_are_named(kind: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(kind))
    for place in rng.integers(0, min(len(data), 700), 8):  # most of them in the headers
        data[place] = rng.integers(256)
    (tmp_path / "damaged").write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says about odd metadata
            image = open_image(tmp_path / "damaged", image_id=5, size_wh=(64, 64))
    except ImageError as error:
        assert "damaged (image 5): " in str(error)  # noqa: PT017
    else:
        assert image.mode == "RGB" and image.size == (64, 64)


@pytest.mark.parametrize("content", [b"", b"not an image", b"<html>404</html>" * 100, bytes(1000)])
def test_files_that_are_no_images_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg \(image 9\): cannot be read as an image"):
        open_image(tmp_path / "a.jpg", image_id=9)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.jpg \(image 9\): the file does not exist"):
        open_image(tmp_path / "a.jpg", image_id=9)
    with pytest.raises(ImageError, match="cannot be read as an image"):
        open_image(tmp_path, image_id=9)


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000)])
def test_decompression_bombs_are_an_error_even_if_stated(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(width, height))
    with pytest.raises(
        ImageError, match=r"bomb\.png \(image 1\): .*decompression bomb.*MAX_IMAGE_PIXELS sets the limit"
    ):
        open_image(tmp_path / "bomb.png", image_id=1, size_wh=(width, height))


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [rgb(), rgb().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = open_image(tmp_path / "a.gif", size_wh=(WIDTH, HEIGHT))
    assert grey_of(image)[:, :4].mean() > grey_of(image)[:, -4:].mean() + 20


# Smaller decoding


def photograph(width: int, height: int) -> Image.Image:
    """Smooth noise."""
    cells = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("least", "size"),
    [((200, 150), (200, 150)), ((199, 150), (200, 150)), ((200, 151), (400, 300)), ((401, 9), (800, 600)),
     ((60, 60), (100, 75)), ((101, 76), (200, 150)), ((900, 900), (800, 600))],
)  # fmt: skip
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_decoded_no_smaller_than_requested_and_turned_as_the_whole(
    least: tuple[int, int], size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = orientation > 4  # stated upright, which exchanges the sides
    photograph(800, 600).save(tmp_path / "a.jpg", exif=exif, quality=95)
    stated, least, size = ((h, w) if turned else (w, h) for w, h in ((800, 600), least, size))
    whole = open_image(tmp_path / "a.jpg", size_wh=stated)
    image = open_image(tmp_path / "a.jpg", size_wh=stated, least_wh=least)
    assert image.size == size and image.mode == "RGB"
    small = whole.resize(image.size, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(small).astype(int)).mean() < 2


def test_other_formats_sizes_and_square_reductions_are_those_of_the_whole(tmp_path: Path) -> None:
    photograph(80, 60).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", size_wh=(80, 60), least_wh=(10, 10)).size == (80, 60)
    photograph(80, 60).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="has 80x60 pixels, but the annotation file states 60x80"):
        open_image(tmp_path / "a.jpg", size_wh=(60, 80), least_wh=(10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(806, 801).save(tmp_path / "b.jpg", exif=exif)  # an eighth of both sides is 101
    stored, upright = (open_image(tmp_path / "b.jpg", size_wh=wh, least_wh=(90, 90)) for wh in ((806, 801), (801, 806)))
    assert stored.size == upright.size == (101, 101)
    assert np.array_equal(np.asarray(stored.transpose(Image.Transpose.ROTATE_270)), np.asarray(upright))
