"""Open image files of every kind that Pillow reads, with errors that name the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height


class ImageError(ValueError):
    """An image file that cannot be used."""


def open_image(path: str | Path, *, image_id: int | None = None, size_wh: tuple[int, int] | None = None) -> Image.Image:
    """Open an image completely, as RGB.

    COCO boxes are in stored pixels, so the camera's orientation (EXIF) is applied only if the annotation file states
    the size of the rotated image. Without `size_wh` the image is rotated upright.

    Args:
        path: the file.
        image_id: its id in the annotation file, for error messages.
        size_wh: width and height stated in the annotation file.

    Raises:
        ImageError: the file is missing, broken, absurdly large, or of another size than stated.
    """
    name = str(path) if image_id is None else f"{path} (image {image_id})"
    try:
        # Pillow only warns of more pixels than Image.MAX_IMAGE_PIXELS, which may be an attack on memory.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image = _orient(image, size_wh)
                if size_wh is None or image.size == tuple(size_wh):
                    return to_rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: {error}. PIL.Image.MAX_IMAGE_PIXELS sets the limit.") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: the file does not exist.") from error
    # Decoders raise nearly anything at a broken file: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageError(f"{name}: cannot be read as an image: {str(error) or type(error).__name__}.") from error
    stated = f"{size_wh[0]}x{size_wh[1]}"
    raise ImageError(f"{name}: has {image.width}x{image.height} pixels, but the annotation file states {stated}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Transparency is dropped, and 16-bit grey loses its lower 8 bits.

    Raises:
        ImageError: the range of the pixel values is unknown (mode F).
    """
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255. Older versions read it as 32-bit "I".
        values = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("pixels are decimal numbers of unknown range (mode F). Convert the file to 8 or 16 bits")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _orient(image: Image.Image, size_wh: tuple[int, int] | None) -> Image.Image:
    """Rotate an image by its EXIF orientation, unless only the stored image has the stated size."""
    if size_wh is None:
        return ImageOps.exif_transpose(image)
    if image.size == tuple(size_wh) or image.size[::-1] != tuple(size_wh):
        return image
    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS else image
