"""Opening image files of every kind that Pillow knows, with errors that name the file."""

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
    """Open an image, whole, as RGB.

    COCO boxes are in the pixels as they are stored, so the orientation that a camera wrote into the file counts only
    if the annotation file has the size of the turned picture. Without `size_wh` the picture is turned upright.

    Args:
        path: the file.
        image_id: its id in the annotation file, for error messages.
        size_wh: width and height that the annotation file states.

    Raises:
        ImageError: the file is missing, broken, absurdly large, or of another size than stated.
    """
    name = str(path) if image_id is None else f"{path} (image {image_id})"
    try:
        # Pillow only warns about a picture of more than Image.MAX_IMAGE_PIXELS, which may be an attack on memory.
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
    # A broken file can make a decoder raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageError(f"{name}: cannot be read as an image: {str(error) or type(error).__name__}.") from error
    stated = f"{size_wh[0]}x{size_wh[1]}"
    raise ImageError(f"{name}: has {image.width}x{image.height} pixels, but the annotation file states {stated}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB. Transparency is dropped, and 16-bit grey loses its lower 8 bits.

    Raises:
        ImageError: pixels of a mode whose range of values is not known.
    """
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255. Older versions read it as 32-bit "I".
        values = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("pixels are decimal numbers of unknown range (mode F); convert the file to 8 or 16 bits")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _orient(image: Image.Image, size_wh: tuple[int, int] | None) -> Image.Image:
    """Turn the picture as its EXIF data say, if there is no stated size or only the turned picture has it."""
    if size_wh is None:
        return ImageOps.exif_transpose(image)
    if image.size == tuple(size_wh) or image.size[::-1] != tuple(size_wh):
        return image
    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS else image
