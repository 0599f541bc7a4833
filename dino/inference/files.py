"""Detection in many files: which files, which ids, and what is written."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.data import ImageError, open_image
from dino.inference.detector import Detector

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_KEPT_FORMATS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class InputFile:
    """A picture to look at."""

    path: Path
    name: Path
    """Its path below the folder that was given, or its file name; output is named after it."""


@dataclass
class Prediction:
    """What `predict_files` did."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Entries of a COCO result file."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """`id`, `file_name`, `width`, `height` of each picture that could be read."""
    failures: list[str] = field(default_factory=list)
    """A line for each file that could not."""


def find_files(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[InputFile]:
    """The pictures that files, folders and glob patterns mean: each once, those of a folder sorted by name.

    Args:
        inputs: a file is taken whatever it is called; a folder, for the pictures in it; a pattern with `*`, `?` or `[`,
            where `**` stands for any folders.
        recursive: folders inside folders too.

    Raises:
        FileNotFoundError: an input that is not there, a folder without pictures, or a pattern that nothing fits.
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
        inside = "" if recursive else "; --recursive looks into the folders inside"
        return f"no pictures in this folder ({', '.join(SUFFIXES)}){inside}"
    return "no file fits this pattern" if glob.has_magic(str(path)) else "no such file or folder"


def coco_ids(annotations: Path, files: Iterable[InputFile]) -> dict[Path, int]:
    """Image ids of files by the `file_name`s of a COCO file: the same path below the folder, or the same file name.

    Raises:
        ValueError: a file that the COCO file does not have, or has more than once; or not a COCO file.
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
    threshold: float = 0.3,
    top_k: int = 300,
    ids: dict[Path, int] | None = None,
    pictures: Path | None = None,
    font: str | None = None,
) -> Iterator[Prediction]:
    """Detect in each file, one after the other. A file that cannot be read is noted, and does not end it.

    Args:
        threshold: the least score of a detection.
        top_k: most detections of one picture.
        ids: image id by path; by default 1, 2, ... in the order of `files`.
        pictures: folder for the pictures with boxes, which have the names of the inputs; None writes none.
        font: a TrueType file for class names that are not in Latin letters.

    Yields:
        After each file the same object, with what there is so far.
    """
    done = Prediction()
    taken: set[Path] = set()
    for number, file in enumerate(files, start=1):
        image_id = number if ids is None else ids[file.path]
        try:
            picture = open_image(file.path)
        except ImageError as error:
            done.failures.append(str(error))
        else:
            found = detector.predict(picture, threshold, top_k=top_k)
            done.results += found.to_coco(image_id)
            done.images.append(
                {"id": image_id, "file_name": str(file.name), "width": picture.width, "height": picture.height}
            )
            if pictures is not None:
                target = pictures / output_name(file.name, taken)
                target.parent.mkdir(parents=True, exist_ok=True)
                found.draw(font=font).save(target, quality=92)
        yield done


def output_name(name: Path, taken: set[Path]) -> Path:
    """A name that is not yet `taken`, in a format that can be written, for a picture made of an input."""
    wanted = name if name.suffix.lower() in _KEPT_FORMATS else name.with_name(f"{name.name}.jpg")
    unique, count = wanted, 1
    while unique in taken:
        count += 1
        unique = wanted.with_name(f"{wanted.stem}-{count}{wanted.suffix}")
    taken.add(unique)
    return unique
