"""Write the demo's data: handwritten digits on photographs, as a COCO data set, without a download."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.commands.demo.digit_images import Box, Sources, compose, load_sources
from dino.common.console import Console

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CONFIG_FILE = "digits.json"
# Increased when a configuration gives other images: directories of an older version are not reused.
_VERSION = 1


@dataclass(frozen=True)
class DigitsConfig:
    """The data set of `make_digits_dataset`."""

    train_images: int = 2000
    """Images in `train/`."""
    valid_images: int = 200
    """Images in `valid/`: other digits by other writers, on another part of a photograph."""
    image_size: int = 160
    """Width and height of an image in pixels."""
    digit_size: tuple[int, int] = (24, 48)
    """Smallest and largest longer side of a digit in pixels."""
    max_digits: int = 5
    """An image has min_digits to max_digits digits, fewer if there is no room."""
    min_digits: int = 1
    """See max_digits."""
    overlap: float = 0.0
    """Largest part of the smaller of two digits' boxes that the larger may share; 0: boxes are 2 pixels apart."""
    seed: int = 0
    """The same configuration gives the same images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digit_size", tuple(self.digit_size))
        low, high = self.digit_size
        for name in ("train_images", "valid_images", "min_digits", "max_digits"):
            if getattr(self, name) < 1:
                raise ValueError(f"DigitsConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.max_digits < self.min_digits:
            raise ValueError(
                f"DigitsConfig: max_digits must be at least min_digits = {self.min_digits}, got {self.max_digits}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"DigitsConfig: overlap must be at least 0 and below 1, got {self.overlap}")
        if not 8 <= low <= high <= self.image_size // 2:
            raise ValueError(
                f"DigitsConfig: digit_size must be (smallest, largest) with 8 <= smallest <= largest <= image_size / 2"
                f" = {self.image_size // 2}, got {self.digit_size}"
            )


def make_digits_dataset(
    directory: str | Path, config: DigitsConfig | None = None, *, console: Console | None = None, **overrides: Any
) -> Path:
    """Write `train/` and `valid/`, each with its images and `_annotations.coco.json`.

    The directory appears complete or not at all. An existing one with the same configuration is reused. Category ids
    are 1 to 10 (named "zero" to "nine"), deliberately not the labels 0 to 9.

    Args:
        directory: created, with its parents.
        config: the default is `DigitsConfig()`.
        console: shows the progress; None shows none.
        overrides: fields of `DigitsConfig` that replace the configuration's.

    Returns:
        The directory.

    Raises:
        ImportError: scikit-learn is missing.
        FileExistsError: the directory holds other files.
    """
    directory = Path(directory)
    config = dataclasses.replace(config or DigitsConfig(), **overrides)
    if _is_complete(directory, config):
        return directory
    splits = load_sources()
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for split, count in (("train", config.train_images), ("valid", config.valid_images)):
            bar = (console or Console(None)).bar(range(count), f"   {split}", "images", leave=False)
            _write_split(temporary / split, split, bar, config, splits[split])
        (temporary / _CONFIG_FILE).write_text(json.dumps(_description(config), indent=1))
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            temporary.rename(directory)
        except OSError:
            # Another process may have finished the same directory first; anything else is an error.
            if not _is_complete(directory, config):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write_split(folder: Path, split: str, indices: Iterable[int], config: DigitsConfig, sources: Sources) -> None:
    folder.mkdir()
    images, annotations = [], []
    for index in indices:
        rng = random.Random(f"{config.seed}/{split}/{index}")
        image, digits = compose(
            rng,
            sources,
            image_size=config.image_size,
            digit_size=config.digit_size,
            max_digits=config.max_digits,
            min_digits=config.min_digits,
            overlap=config.overlap,
        )
        file_name = f"{split}_{index:05d}.jpg"
        image.save(folder / file_name, quality=95, subsampling=0)
        image_id = index + 1
        images.append({"id": image_id, "file_name": file_name, "width": config.image_size, "height": config.image_size})
        annotations += annotations_of(image_id, digits, len(annotations) + 1)
    document = {"images": images, "annotations": annotations, "categories": categories()}
    (folder / "_annotations.coco.json").write_text(json.dumps(document))


def annotations_of(image_id: int, digits: Iterable[tuple[int, Box]], first_id: int) -> list[dict[str, Any]]:
    """Return COCO annotations of digits, (value, box) each."""
    return [
        {
            "id": first_id + k,
            "image_id": image_id,
            "category_id": value + 1,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for k, (value, box) in enumerate(digits)
    ]


def categories() -> list[dict[str, Any]]:
    """Return COCO's categories of the digits."""
    return [{"id": value + 1, "name": name} for value, name in enumerate(DIGIT_NAMES)]


def _description(config: DigitsConfig) -> dict[str, Any]:
    later = {"min_digits": 1, "overlap": 0.0}  # fields that folders of this version may lack
    fields = {name: value for name, value in dataclasses.asdict(config).items() if later.get(name) != value}
    return {"version": _VERSION, **fields, "digit_size": list(config.digit_size)}


def _is_complete(directory: Path, config: DigitsConfig) -> bool:
    """Return True if the directory holds this data set, False if it can be written; otherwise raise."""
    if not directory.exists() or (directory.is_dir() and not os.listdir(directory)):
        return False
    found = json.loads((directory / _CONFIG_FILE).read_text()) if (directory / _CONFIG_FILE).is_file() else None
    if found == _description(config):
        return True
    what = f"a digits data set of another configuration ({found})" if found else "other files"
    raise FileExistsError(
        f"{directory} holds {what}, requested is {_description(config)}. Choose another directory, or delete it."
    )
