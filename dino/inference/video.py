"""Read the frames of videos, cameras and streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from dino.data import ImageError

# Files state their number of frames or its estimate. A whole video may have a few less.
_MISSING_FRAMES, _MISSING_SHARE = 3, 0.02


class IncompleteVideoError(ImageError):
    """A video that cannot be read to its end, after its readable frames."""


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
        IncompleteVideoError: after the last frame, far fewer frames were read than the file states.
    """
    opencv = import_opencv(source)
    video = opencv.VideoCapture(source)
    try:
        if not video.isOpened():
            raise ImageError(f"{source}: cannot be opened as a {'camera' if isinstance(source, int) else 'video'}.")
        count, stated = 0, video.get(opencv.CAP_PROP_FRAME_COUNT)
        while True:
            read, pixels = video.read()
            if not read:
                break
            count += 1
            yield Image.fromarray(pixels[..., ::-1])
    finally:
        video.release()
    if count == 0:
        raise ImageError(f"{source}: has no frame that can be read.")
    if stated - count > max(_MISSING_FRAMES, _MISSING_SHARE * stated):  # a stream states none
        raise IncompleteVideoError(
            f"{source}: stopped after {count:,} of about {stated:,.0f} frames. The file may be damaged or incomplete."
        )
