"""Pictures of any kind that people have, as RGB images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dino.data import open_image, to_rgb

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""What `Detector.predict` takes."""


def load_picture(image: Picture) -> Image.Image:
    """What `Detector.predict` takes, as an RGB image.

    Raises:
        ImageError: a file that cannot be read as a picture.
        ValueError, TypeError: something else, with what is allowed.
    """
    if isinstance(image, str) and "://" in image[:12]:
        raise ValueError(f"predict: images must be local files, got the address {image!r}; download it first")
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
            raise ValueError(
                f"predict: a tensor must be [3, H, W], [4, H, W], [1, H, W] or [H, W], got {list(image.shape)}; pass a "
                f"batch as list(images)"
            )
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    raise TypeError(
        f"predict: a picture must be a file name, a PIL image, an array or a tensor, got {type(image).__name__}"
    )


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3 or 4] from an array of any allowed kind."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or pixels.size == 0:
        raise ValueError(
            f"predict: an array must be [H, W, 3], [H, W, 4] or [H, W], got {list(pixels.shape)}; arrays with the "
            f"channels first need image.transpose(1, 2, 0)"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels >= 0).all() or not (pixels <= 1).all():
            raise ValueError(
                f"predict: floating-point pixels must be in 0..1, got {pixels.min():.3g} to {pixels.max():.3g}; pass "
                f"0..255 as uint8"
            )
        pixels = (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"predict: pixels must be uint8, or floating point in 0..1, got {pixels.dtype}")
    return np.ascontiguousarray(pixels)
