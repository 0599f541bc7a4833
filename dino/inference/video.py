"""Read the frames of videos, cameras and streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from dino.data import ImageError


def import_opencv(source: str | int) -> Any:
    """Return the module of OpenCV.

    Args:
        source: what needs it, for the error.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import cv2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{source}: videos, cameras and streams need OpenCV ({error}). Install it: "
            f'pip install "dino-kernels[video]"'
        ) from error
    return cv2


def read_frames(source: str | int) -> Iterator[Image.Image]:
    """Yield the frames of a video in RGB; those of a camera or stream until it ends.

    Raises:
        ImportError: OpenCV is not installed.
        ImageError: the video cannot be opened or has no frame.
    """
    video = import_opencv(source).VideoCapture(source)
    try:
        if not video.isOpened():
            raise ImageError(f"{source}: cannot be opened as a {'camera' if isinstance(source, int) else 'video'}.")
        empty = True
        while True:
            read, pixels = video.read()
            if not read:
                break
            empty = False
            yield Image.fromarray(pixels[..., ::-1])
    finally:
        video.release()
    if empty:
        raise ImageError(f"{source}: has no frame that can be read.")
