"""Convert pixels of every kind to 8 bits."""

from __future__ import annotations

import numpy as np

_BITS = (8, 10, 12, 14, 16)
"""Depths that cameras and scanners write into 16-bit files."""


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Convert an array of pixels to uint8, of the same shape.

    Floating point is in 0..1. Integers wider than 8 bits have the smallest usual depth (8, 10, 12, 14 or 16 bits) that
    holds the largest value, so that 12-bit grey in a 16-bit file keeps its brightness. Booleans are black and white.

    Raises:
        ValueError: the array is empty, its type is no number, or values are negative, NaN or out of range.
    """
    if pixels.size == 0:
        raise ValueError(f"the image has no pixels, its shape is {list(pixels.shape)}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if not (np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(f"pixels must be integers, or floating point in 0..1, got {pixels.dtype}")
    least, largest = pixels.min(), pixels.max()
    if np.issubdtype(pixels.dtype, np.floating):
        if not (least >= 0 and largest <= 1):  # NaN is neither
            got = "NaN" if np.isnan(least) else f"{least:.3g} to {largest:.3g}"
            raise ValueError(f"floating-point pixels must be in 0..1, got {got}. Pass 0..255 as uint8")
        return (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    least, largest = int(least), int(largest)
    if least < 0 or largest >= 1 << _BITS[-1]:
        raise ValueError(f"integer pixels must be in 0..65535, got {least} to {largest}. Scale them to 8 bits")
    bits = next(bits for bits in _BITS if largest < 1 << bits)
    return (pixels >> (bits - 8)).astype(np.uint8)
