"""Open image files of every kind that Pillow reads, upright or as stored, with errors that name the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from dino.data.pixels import to_bytes
from dino.data.shards import open_picture_file

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height
_TO_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_TO_STORED = {**_TO_UPRIGHT, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}


class ImageError(ValueError):
    """An image file that cannot be used."""


def open_image(
    path: str | Path,
    *,
    image_id: int | None = None,
    size_wh: tuple[int, int] | None = None,
    least_wh: tuple[int, int] | None = None,
) -> Image.Image:
    """Open an image completely, as RGB.

    Args:
        path: the file, also one in a tar shard, "shard.tar/0001.jpg".
        image_id: its id in the annotation file, for error messages.
        size_wh: width and height stated in the annotation file; see `to_rgb`.
        least_wh: decode a JPEG at a half, a quarter or an eighth of `size_wh`, rounded up, if it is then at least this
            wide and high. The decoder averages pixels, and takes a fraction of the time. Sides that are no multiple are
            stretched by less than a pixel of the result.

    Raises:
        ImageError: the file is missing, broken, absurdly large, or of another size than stated.
    """
    name = str(path) if image_id is None else f"{path} (image {image_id})"
    try:
        # Pillow only warns of more pixels than Image.MAX_IMAGE_PIXELS, which may be an attack on memory.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(open_picture_file(path)) as image:
                stored_wh = _reduce(image, size_wh, least_wh) if size_wh and least_wh else None
                rgb = to_rgb(image, size_wh=size_wh, stored_wh=stored_wh)
                if stored_wh is not None or size_wh is None or rgb.size == tuple(size_wh):
                    return rgb
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: {error}. PIL.Image.MAX_IMAGE_PIXELS sets the limit.") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: the file does not exist.") from error
    # Decoders raise nearly anything at a broken file: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageError(f"{name}: cannot be read as an image: {str(error) or type(error).__name__}.") from error
    stated = f"{size_wh[0]}x{size_wh[1]}"
    raise ImageError(f"{name}: has {rgb.width}x{rgb.height} pixels, but the annotation file states {stated}.")


def _reduce(image: Image.Image, size_wh: tuple[int, int], least_wh: tuple[int, int]) -> tuple[int, int] | None:
    """Let a JPEG of the stated size be decoded in a smaller one; return its stored size, or None if it has another."""
    stored_wh = image.size
    sideways = stored_wh != tuple(size_wh)
    if image.format not in ("JPEG", "MPO") or (
        sideways and (_orientation(image) not in _SIDEWAYS or stored_wh[::-1] != tuple(size_wh))
    ):
        return None
    image.draft(None, (least_wh[1], least_wh[0]) if sideways else least_wh)
    return stored_wh


def to_rgb(
    image: Image.Image, *, size_wh: tuple[int, int] | None = None, stored_wh: tuple[int, int] | None = None
) -> Image.Image:
    """Convert an image of any mode to RGB, rotated as its boxes need it. This is the one rule of orientation.

    Without a stated size the image is rotated upright by its EXIF orientation. Boxes of an annotation file are in
    stored pixels, so with a stated size the image stays as stored, unless only the rotated image has that size. The
    result carries no metadata: a second call does not rotate it again.

    Transparency is dropped. Grey of more than 8 bits is converted by `to_bytes`.

    Args:
        image: a PIL image.
        size_wh: width and height stated in the annotation file.
        stored_wh: width and height in the file, of an image that is decoded in a smaller size.

    Raises:
        ImageError: the image is empty, or its pixel values have no known range.
    """
    if 0 in image.size:
        raise ImageError(f"the image has no pixels, its size is {image.width}x{image.height}")
    image = _orient(image, size_wh, stored_wh)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip them at 255
        try:
            rgb = Image.fromarray(to_bytes(np.asarray(image))).convert("RGB")
        except ValueError as error:
            raise ImageError(f"{error} (mode {image.mode})") from error
    else:
        rgb = (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")
    rgb.info.clear()
    return rgb


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image that was opened, but not loaded, after it is rotated upright."""
    width, height = image.size
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def _orient(
    image: Image.Image, size_wh: tuple[int, int] | None, stored_wh: tuple[int, int] | None = None
) -> Image.Image:
    """Return an image upright without a stated size or if only then it has that size, and otherwise as stored."""
    orientation = _orientation(image)
    image.load()
    is_upright = orientation != 1 and _orientation(image) == 1  # Pillow rotates TIFF files when it loads them
    sideways = orientation in _SIDEWAYS
    width, height = image.size
    stored_wh = stored_wh or ((height, width) if is_upright and sideways else (width, height))
    upright = size_wh is None or (sideways and stored_wh != tuple(size_wh) and stored_wh[::-1] == tuple(size_wh))
    if orientation == 1 or upright == is_upright:
        return image
    return image.transpose(_TO_UPRIGHT[orientation] if upright else _TO_STORED[orientation])


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # metadata can be damaged in as many ways as pixels, which may still be whole
        return 1
    return value if value in _TO_UPRIGHT else 1
