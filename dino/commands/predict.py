"""`python -m dino predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dino.commands.parsing import ModelOptions, Number, OptionalFile, parse


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Find objects in images.

    Writes to the output folder: predictions.json (COCO's result format), images.json (the id of each file), and
    pictures/ with the boxes drawn. Unreadable files are listed at the end, and the exit code is then 1.
    """

    inputs: Positional[Annotated[tuple[str, ...], arg(metavar="INPUT [INPUT ...]", help_behavior_hint="")]]
    """Files, folders, or patterns such as "album/*.jpg"."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("predictions")
    """Where to write."""
    threshold: Annotated[float | Literal["best"], arg(metavar="SCORE|best")] = 0.3
    """Lowest score of a detection, 0 to 1 (0 to compute metrics), or best: what evaluate found for each class."""
    top_k: Number = 300
    """Largest number of detections of an image."""
    recursive: bool = False
    """Include the folders inside folders."""
    annotations: OptionalFile = None
    """A COCO file with the image ids, found by file name; by default they are 1, 2, ..."""
    no_pictures: bool = False
    """Write the two JSON files only."""
    font: OptionalFile = None
    """A TrueType font for class names that are not in Latin letters."""


def predict_command(argv: Sequence[str]) -> int:
    """Predict and return the exit code: 1 if a file could not be read."""
    options = parse(PredictOptions, "predict", argv)
    if not options.inputs:
        raise ValueError("predict: no INPUT. Pass files, folders or patterns.")
    from dino.common.console import Console
    from dino.inference.files import Prediction, coco_ids, find_files, predict_files

    files = find_files(options.inputs, recursive=options.recursive)
    ids = None if options.annotations is None else coco_ids(options.annotations, files)
    detector = options.detector()
    detector.lowest_scores(options.threshold)  # an error before anything is written
    options.output.mkdir(parents=True, exist_ok=True)
    progress = predict_files(
        detector,
        files,
        threshold=options.threshold,
        top_k=options.top_k,
        ids=ids,
        pictures=None if options.no_pictures else options.output / "pictures",
        font=None if options.font is None else str(options.font),
    )
    done = Prediction()
    for state in Console(sys.stderr).bar(progress, "predict", "image", total=len(files)):
        done = state
    for name, content in (("predictions.json", done.results), ("images.json", done.images)):
        (options.output / name).write_text(json.dumps(content), encoding="utf-8")
    drawn = " and pictures/" if done.images and not options.no_pictures else ""
    print(f"{len(done.results)} detections in {len(done.images)} images")
    print(f"wrote predictions.json, images.json{drawn} to {options.output}")
    for failure in done.failures:
        print(f"left out: {failure}", file=sys.stderr)
    if done.failures:
        print(f"{len(done.failures)} of {len(files)} files could not be read", file=sys.stderr)
    return 1 if done.failures else 0
