"""`python -m dino data`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from dino.commands.parsing import Number, parse
from dino.common.files import make_folder

if TYPE_CHECKING:
    from dino.data import CocoIndex, Layout, TrainTransform


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Count, check, draw and convert a data set.

    Prints the recognised format, images and boxes of each class and split, sizes, and every kind of problem with its
    count; the exit code is 1 if there are problems. Writes data_sheet.png (images with their boxes) and augmented.png
    (batches of training as the model sees them) to the output folder.
    """

    data: Positional[Annotated[Path, arg(metavar="DATA", help_behavior_hint="")]]
    """Folder or file in COCO, YOLO, Pascal VOC, CSV or WebDataset format."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("data_preview")
    """Where to write."""
    to: Annotated[Literal["coco"] | None, arg(metavar="coco", help_behavior_hint="")] = None
    """Write the valid entries of all splits to the output folder in this format, with links to the images;
    those in tar shards are copied."""
    copy: bool = False
    """Copy the images instead of linking them."""
    pictures: Number = 16
    """Images in data_sheet.png."""
    seed: Number = 42
    """Seed of the choice of images and of the augmentation."""
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides of augmented images in pixels, as in training."""
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1333
    """Upper limit of their long side."""
    no_crop: bool = False
    """Crop no augmented images; by default half of them, as in training."""
    no_flip: bool = False
    """Mirror no augmented images; by default half of them, as in training."""
    no_decode: bool = False
    """Do not decode every image to find damaged ones."""


def data_command(argv: Sequence[str]) -> int:
    """Describe a data set and return the exit code: 1 if it has problems."""
    options = parse(DataOptions, "data", argv)
    from dino.data import find_splits
    from dino.data.convert import write_coco
    from dino.data.statistics import boxes_per_class, problems_and_notes, sizes_and_shapes

    layout, transform = find_splits(options.data), train_transform(options)
    if options.to is not None:
        taken = [name for name in layout.splits if (options.output / name).exists()]
        if taken:
            raise ValueError(f"output: {options.output / taken[0]} exists. Pass another --output, or delete it.")
    print(f"{options.data}: {layout.format} ({layout.sources})")
    indexes, problems = load_all(layout)
    print("\n".join(boxes_per_class(indexes)))
    for name, index in indexes.items():
        print(f"{name}:", *sizes_and_shapes(index), sep="\n  ")
    damaged = [] if options.no_decode else unreadable(indexes)
    problems += damaged
    notes = problems_and_notes(list(indexes.values()))
    print("\n".join([*notes, *problems]) or "no problems", flush=True)
    make_folder(options.output, "output")
    for name, draw in sheets(options, indexes, transform).items():
        path = options.output / name
        draw().save(path)
        print(f"wrote {path}")
    if options.to is not None:
        for name, index in indexes.items():
            print(f"wrote {write_coco(index, options.output / name, copy=options.copy)}")
    return 1 if problems or any(index.problems for index in indexes.values()) else 0


def load_all(layout: Layout) -> tuple[dict[str, CocoIndex], list[str]]:
    """Load every split that can be read, without its invalid entries; return the problems of whole splits as well.

    Raises:
        DatasetError: no split can be read.
    """
    from dino.data import DatasetError
    from dino.data.build import agreeing, numbered_by_name

    indexes, problems, first = {}, [], None
    ids: dict[str, int] = {}
    for name, split in layout.splits.items():
        try:
            index = split.load(skip_invalid=True)
        except DatasetError as error:
            first = first or error
            problems.append(f"{name}: {error}")
            continue
        if index.named:  # one id for a name in all splits
            index = numbered_by_name(index, ids)
            ids |= {n: i for i, n in zip(index.categories.ids, index.categories.names, strict=True)}
        if "train" in indexes:
            try:
                agreeing(index, indexes["train"].categories, indexes["train"].name)
            except DatasetError as error:
                problems.append(f"{name}: {error}")
        indexes[name] = index
    if first is not None and not indexes:
        raise first
    return indexes, problems


def unreadable(indexes: dict[str, CocoIndex]) -> list[str]:
    """Decode every image; return a line for each split with the first error and the number of errors."""
    from dino.common.console import Console
    from dino.data import ImageError, open_image

    def error_of(path: Path, image_id: int, size_wh: list[int]) -> str | None:
        try:
            open_image(path, image_id=image_id, size_wh=(size_wh[0], size_wh[1]))
        except ImageError as error:
            return str(error)
        return None

    lines, console = [], Console(sys.stderr)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, index in indexes.items():
            paths = map(index.image_path, range(len(index)))
            results = pool.map(error_of, paths, index.image_ids.tolist(), index.sizes_wh.tolist())
            found = console.bar(results, f"decode {name}", "images", total=len(index), leave=False)
            errors = [error for error in found if error is not None]
            if errors:
                end = f"{len(errors)} of {len(index)} images cannot be used"
                lines.append(f"{name}: {errors[0].rstrip('.')}. {end}.")
    return lines


def train_transform(options: DataOptions) -> TrainTransform:
    """Return the augmentation of the options, checked."""
    from dino.data import TrainTransform

    return TrainTransform(
        short_sides=options.short_sides,
        long_side=options.long_side,
        crop_probability=0.0 if options.no_crop else 0.5,
        flip_probability=0.0 if options.no_flip else 0.5,
    )


def sheets(options: DataOptions, indexes: dict[str, CocoIndex], transform: TrainTransform) -> dict:
    """Return the functions that draw the files of the output folder."""
    from dino.commands.data_sheets import augmented_sheet, data_sheet

    name, index = next(iter(indexes.items()))
    return {
        "data_sheet.png": lambda: data_sheet(name, index, options.pictures, options.seed),
        "augmented.png": lambda: augmented_sheet(index, transform, options.seed),
    }
