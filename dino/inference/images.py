"""Convert images of any common kind to RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dino.data import open_image, to_rgb

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""An image that `Detector.predict` accepts."""


def load_image(image: ImageLike) -> Image.Image:
    """Return an image that `Detector.predict` accepts as RGB.

    Raises:
        ImageError: the file cannot be read as an image.
        ValueError, TypeError: not an image.
    """
    if isinstance(image, str) and "://" in image[:12]:
        raise ValueError(f"predict: images must be local files, got the address {image!r}. Download it first.")
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
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
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    raise TypeError(
        f"predict: an image must be a file name, a PIL image, an array or a tensor, got {type(image).__name__}"
    )


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Convert an array of any allowed kind to uint8 [H, W] or [H, W, 3 or 4]."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or pixels.size == 0:
        raise ValueError(
            f"predict: an array must be [H, W, 3], [H, W, 4] or [H, W], got {list(pixels.shape)}. Transpose an "
            f"array with the channels first: image.transpose(1, 2, 0)."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels >= 0).all() or not (pixels <= 1).all():
            raise ValueError(
                f"predict: floating-point pixels must be in 0..1, got {pixels.min():.3g} to {pixels.max():.3g}. Pass "
                f"0..255 as uint8."
            )
        pixels = (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"predict: pixels must be uint8, or floating point in 0..1, got {pixels.dtype}")
    return np.ascontiguousarray(pixels)
