"""Detect in many files: the results of each, and images with boxes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.common.finite import NotFiniteError
from dino.data import ImageError
from dino.inference.annotated import Annotated
from dino.inference.detections import Detections
from dino.inference.detector import Detector
from dino.inference.settings import Settings
from dino.inference.sources import Source
from dino.inference.video import IncompleteVideoError

_KEPT_FORMATS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Outcome:
    """What became of an image file, or of a frame of a video."""

    source: Source
    found: Detections | None = None
    """Its detections; None if it could not be read."""
    image: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`id`, `file_name` (the path as it was given), `width`, `height`, `picture` and, of a video, `frame`."""
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Entries of a COCO result file."""
    unreadable: str | None = None
    """Why it could not be read."""
    incomplete: str | None = None
    """Why a video, whose frames are other outcomes, was not read to its end."""
    unwritten: str | None = None
    """Why its picture could not be written."""


def predict_files(
    detector: Detector,
    sources: Sequence[Source],
    settings: Settings,
    *,
    known: Mapping[str, Annotated] | None = None,
    pictures: Path | None = None,
    font: str | None = None,
    every: int = 1,
) -> Iterator[Outcome]:
    """Detect in each file, and in each frame of a video.

    Args:
        known: id and size by path; boxes are then in the pixels that the annotation file means. By default ids are 1,
            2, ... in the order of the images, and images are upright.
        pictures: folder for images with boxes, named after the inputs; None writes none.
        font: a TrueType file for the names of classes.
        every: of a video, detect in every so many frames.

    Yields:
        The outcome of each image in turn.
    """
    taken: set[str] = set()
    image_id = 0
    for source in sources:
        target = None if pictures is None else output_name(source.name, taken, is_video=source.is_video)
        stated = None if known is None else known[source.path]
        try:
            for frame, image in source.frames(None if stated is None else stated.size_wh):
                if frame is not None and frame % every:
                    continue
                image_id += 1
                number = image_id if stated is None else stated.id
                found = detector.detect([image], settings)[0]
                found = dataclasses.replace(found, path=source.path, frame=frame)
                name = target if target is None or frame is None else target / f"{frame:06}.jpg"
                unwritten = None if pictures is None or name is None else _draw(found, pictures / name, font)
                entry = {"id": number, "file_name": source.path, "width": image.width, "height": image.height}
                entry |= {} if frame is None else {"frame": frame}
                entry |= {} if name is None or unwritten is not None else {"picture": name.as_posix()}
                yield Outcome(source, found, entry, found.to_coco(number), unwritten=unwritten)
        except IncompleteVideoError as error:
            yield Outcome(source, incomplete=str(error))
        except ImageError as error:
            image_id += 1
            yield Outcome(source, unreadable=str(error))
        except NotFiniteError as error:
            yield Outcome(source, unreadable=f"{source.path}: {str(error).removeprefix('images[0]: ')}")


def _draw(found: Detections, file: Path, font: str | None) -> str | None:
    """Write an image with its boxes; return why that is impossible, if it is."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        found.draw(font=font).save(file, quality=92)
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)  # an incomplete one
        return f"{file}: cannot be written: {error.strerror or error}"
    return None


def output_name(name: Path, taken: set[str], *, is_video: bool = False) -> Path:
    """Return a name that is not `taken`, in a format that can be written, for the drawing of an input.

    Args:
        name: path of the input below the folder.
        taken: names returned before, in lower case, because some file systems do not distinguish case.
        is_video: return a name for a folder.
    """
    keeps = is_video or name.suffix.lower() in _KEPT_FORMATS
    preferred = name if keeps else name.with_name(f"{name.name}.jpg")
    unique, count = preferred, 1
    while str(unique).lower() in taken:
        count += 1
        unique = preferred.with_name(f"{preferred.stem}-{count}{preferred.suffix}")
    taken.add(str(unique).lower())
    return unique
