"""Detect in many files: find them, assign image ids, write images with boxes."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.common.finite import NotFiniteError
from dino.data import ImageError, open_image
from dino.inference.detector import Detector, Threshold

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_KEPT_FORMATS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class InputFile:
    """An image to detect in."""

    path: Path
    name: Path
    """Its path below the given folder, or its file name; output files are named after it."""


@dataclass
class Prediction:
    """The results of `predict_files`."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Entries of a COCO result file."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """`id`, `file_name`, `width`, `height` of each image that could be read."""
    failures: list[str] = field(default_factory=list)
    """A line for each file that could not be read."""


def find_files(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[InputFile]:
    """List the images in files, folders and glob patterns: each once, those of a folder sorted by name.

    Args:
        inputs: files of any name, folders of images, or patterns with `*`, `?` or `[`; `**` matches any folders.
        recursive: include folders inside folders.

    Raises:
        FileNotFoundError: an input does not exist, a folder has no images, or nothing matches a pattern.
    """
    found: dict[Path, InputFile] = {}
    for text in inputs:
        files = list(_expand(Path(text), recursive))
        if not files:
            raise FileNotFoundError(f"{text}: {_why_nothing(Path(text), recursive)}")
        for file in files:
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _expand(path: Path, recursive: bool) -> Iterator[InputFile]:
    if path.is_file():
        yield InputFile(path, Path(path.name))
    elif path.is_dir():
        for file in sorted(path.rglob("*") if recursive else path.iterdir()):
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield InputFile(file, file.relative_to(path))
    elif glob.has_magic(str(path)):
        for match in sorted(glob.glob(str(path), recursive=True)):
            yield from _expand(Path(match), recursive)


def _why_nothing(path: Path, recursive: bool) -> str:
    if path.is_dir():
        advice = "" if recursive else ". Pass --recursive to include the folders inside"
        return f"no images in this folder ({', '.join(SUFFIXES)}){advice}"
    return "no file matches this pattern" if glob.has_magic(str(path)) else "no such file or folder"


def coco_ids(annotations: Path, files: Iterable[InputFile]) -> dict[Path, int]:
    """Return the image ids of files, found in a COCO file by the path below the folder or by the file name.

    Raises:
        ValueError: the COCO file is invalid, or has an image not at all or more than once.
    """
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        known = [(Path(image["file_name"]), int(image["id"])) for image in images]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{annotations}: not a COCO file with images, each with file_name and id ({error})") from error
    by_path: dict[Path, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for path, image_id in known:
        by_path.setdefault(path, []).append(image_id)
        by_name.setdefault(path.name, []).append(image_id)
    ids = {}
    for file in files:
        candidates = by_path.get(file.name) or by_name.get(file.path.name, [])
        if len(candidates) != 1:
            how_often = "does not have" if not candidates else f"has {len(candidates)} images called"
            raise ValueError(f"{annotations}: {how_often} {file.name}; its image id is not known")
        ids[file.path] = candidates[0]
    return ids


def predict_files(
    detector: Detector,
    files: Sequence[InputFile],
    *,
    threshold: Threshold = 0.3,
    top_k: int = 300,
    ids: dict[Path, int] | None = None,
    pictures: Path | None = None,
    font: str | None = None,
) -> Iterator[Prediction]:
    """Detect in each file. Unreadable files are listed in the result.

    Args:
        threshold: lowest score of a detection, or "best"; see `Detector.predict`.
        top_k: largest number of detections of an image.
        ids: image id by path; by default 1, 2, ... in the order of `files`.
        pictures: folder for images with boxes, named after the inputs; None writes none.
        font: a TrueType file for class names that are not in Latin letters.

    Yields:
        After each file the same object, with the results so far.
    """
    done = Prediction()
    taken: set[Path] = set()
    for number, file in enumerate(files, start=1):
        image_id = number if ids is None else ids[file.path]
        try:
            image = open_image(file.path)
            found = detector.predict(image, threshold, top_k=top_k)
        except ImageError as error:
            done.failures.append(str(error))
        except NotFiniteError as error:
            done.failures.append(f"{file.path}: {error}")
        else:
            done.results += found.to_coco(image_id)
            done.images.append(
                {"id": image_id, "file_name": str(file.name), "width": image.width, "height": image.height}
            )
            if pictures is not None:
                target = pictures / output_name(file.name, taken)
                target.parent.mkdir(parents=True, exist_ok=True)
                found.draw(font=font).save(target, quality=92)
        yield done


def output_name(name: Path, taken: set[Path]) -> Path:
    """Return a name that is not `taken`, in a format that can be written, for the drawing of an input."""
    preferred = name if name.suffix.lower() in _KEPT_FORMATS else name.with_name(f"{name.name}.jpg")
    unique, count = preferred, 1
    while unique in taken:
        count += 1
        unique = preferred.with_name(f"{preferred.stem}-{count}{preferred.suffix}")
    taken.add(unique)
    return unique
