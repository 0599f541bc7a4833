"""Convert images of any common kind to RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dino.data import ImageError, open_image, to_rgb
from dino.data.pixels import to_bytes

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""An image that `Detector.predict` accepts."""


def load_image(image: ImageLike) -> Image.Image:
    """Return an image that `Detector.predict` accepts as RGB; files and PIL images upright by their EXIF orientation.

    Raises:
        ImageError: the file or PIL image cannot be read.
        ValueError, TypeError: not an image.
    """
    if isinstance(image, str) and "://" in image[:12]:
        raise ValueError(f"predict: images must be local files, got the address {image!r}. Download it first.")
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except ImageError as error:
            raise ImageError(f"predict: {error}.") from error
        except Exception as error:  # as in open_image: PIL decodes now, and broken files raise nearly anything
            name = getattr(image, "filename", "") or "the PIL image"
            raise ImageError(f"predict: {name} cannot be decoded: {str(error) or type(error).__name__}.") from error
    if isinstance(image, Tensor):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
            raise ValueError(
                f"predict: a tensor must be [3, H, W], [4, H, W], [1, H, W] or [H, W], got {list(image.shape)}. Pass a "
                f"batch as list(images)."
            )
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise TypeError(
        f"predict: an image must be a file name, a PIL image, an array or a tensor, got {type(image).__name__}"
    )


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Convert an array of any allowed kind to RGB."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or pixels.size == 0:
        advice = " Transpose an array with the channels first: image.transpose(1, 2, 0)." if pixels.size else ""
        raise ValueError(
            f"predict: an array must be [H, W, 3], [H, W, 4], [H, W, 1] or [H, W], and not empty, got "
            f"{list(pixels.shape)}.{advice}"
        )
    colour = pixels if pixels.ndim == 2 else pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]
    try:
        return Image.fromarray(to_bytes(colour)).convert("RGB")
    except ValueError as error:
        raise ValueError(f"predict: {error}.") from error
