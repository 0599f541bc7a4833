"""`python -m dino predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from dino.commands.parsing import Number, OptionalFile, OptionalPixels, RunOptions, parse
from dino.common.files import make_folder
from dino.common.text import counted

if TYPE_CHECKING:
    from dino.inference.files import Outcome
    from dino.inference.settings import Settings

_MOST_LINES = 20


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions):
    """Find objects in images and videos.

    Writes to the output folder, image by image: predictions.json (COCO's result format), images.json (id, path and
    drawing of each image), and pictures/ with the boxes drawn. Images that cannot be read are listed at the end, and
    the exit code is then 1.
    """

    inputs: Positional[Annotated[tuple[str, ...], arg(metavar="INPUT [INPUT ...]", help_behavior_hint="")]]
    """Image files, folders, tar shards, patterns such as "album/*.jpg", text files with one path per line; with the
    extra "video" also video files, numbers of cameras (0) and addresses of streams (rtsp://...)."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("predictions")
    """Where to write."""
    threshold: Annotated[float | Literal["best"], arg(metavar="SCORE|best")] = 0.3
    """Lowest score of a detection, 0 to 1 (0 to compute metrics), or best: what evaluate found for each class."""
    top_k: Number = 300
    """Largest number of detections of an image, or of a tile."""
    classes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Classes to detect; by default all."""
    tile: OptionalPixels = None
    """Detect in overlapping tiles of this size: finds small objects in large images."""
    overlap: Annotated[float, arg(metavar="SHARE")] = 0.2
    """Share of a tile that the next one covers again; an object up to this large is whole in some tile."""
    nms: Annotated[float | None, arg(metavar="IOU", help_behavior_hint="")] = None
    """Drop a detection that overlaps a better one of its class by more than this."""
    every: Number = 1
    """Of a video, detect in every N-th frame."""
    recursive: bool = False
    """Include the folders inside folders."""
    annotations: OptionalFile = None
    """A COCO file with the image ids, found by file name; by default they are 1, 2, ..."""
    no_pictures: bool = False
    """Write the two JSON files only."""
    font: OptionalFile = None
    """A TrueType font for the names of classes; by default one of the system that has their letters."""

    def settings(self) -> Settings:
        """Return the checked options of a prediction."""
        from dino.inference.settings import Settings

        return Settings(
            threshold=self.threshold,
            top_k=self.top_k,
            classes=self.classes or None,
            tile=self.tile,
            overlap=self.overlap,
            nms=self.nms,
        )


@dataclass
class _Summary:
    """Counts for the last lines; of failures, only as many as are shown."""

    inputs: int
    images: int = 0
    detections: int = 0
    best: tuple[float, str] = (0.0, "")
    lines: list[str] = field(default_factory=list)
    unreadable: int = 0
    incomplete: int = 0
    unwritten: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome.found is not None:
            self.images += 1
            self.detections += len(outcome.found)
            self.best = max(self.best, (outcome.found.best_score, outcome.source.path))
        self.unreadable += outcome.unreadable is not None
        self.unwritten += outcome.unwritten is not None
        self.incomplete += outcome.incomplete is not None
        reason = outcome.unreadable or outcome.incomplete or outcome.unwritten
        if reason is not None and len(self.lines) < _MOST_LINES:
            kind = "left out: " if outcome.unreadable else "" if outcome.incomplete else "no picture: "
            self.lines.append(kind + reason)

    def print(self, output: Path, threshold: float | str, pictures: bool) -> None:
        """Print what was found, where it is, and what is missing."""
        print(f"{counted(self.detections, 'detection')} in {counted(self.images, 'image')}")
        if self.images and not self.detections:
            shown = threshold if isinstance(threshold, str) else f"{threshold:g}"
            print(f"the best score is {self.best[0]:.3f}, in {self.best[1]}; the threshold is {shown}")
        drawn = " and pictures/" if pictures and self.images > self.unwritten else ""
        print(f"wrote predictions.json, images.json{drawn} to {output}")
        for line in self.lines:
            print(line, file=sys.stderr)
        failures = self.unreadable + self.incomplete + self.unwritten
        if failures > len(self.lines):
            print(f"and {failures - len(self.lines):,} more", file=sys.stderr)
        if self.unreadable:
            print(f"{self.unreadable} of {counted(self.inputs, 'file')} could not be read", file=sys.stderr)
        if self.incomplete:
            print(f"{counted(self.incomplete, 'video')} could not be read to the end", file=sys.stderr)
        if self.unwritten:
            print(f"{counted(self.unwritten, 'picture')} could not be written", file=sys.stderr)


def predict_command(argv: Sequence[str]) -> int:
    """Predict and return the exit code: 1 if a file could not be read in full, or a picture not written."""
    options = parse(PredictOptions, "predict", argv)
    if not options.inputs:
        raise ValueError("predict: no INPUT. Pass files, folders or patterns.")
    if options.every < 1:
        raise ValueError(f"predict: --every must be at least 1, got {options.every}")
    from dino.common.console import Console
    from dino.inference.annotated import coco_images
    from dino.inference.draw import missing_letters_text
    from dino.inference.files import predict_files
    from dino.inference.fonts import load_font, missing_letters
    from dino.inference.results import JsonList
    from dino.inference.sources import find_sources
    from dino.inference.video import import_opencv

    settings = options.settings()
    sources = find_sources(options.inputs, recursive=options.recursive)
    known = None if options.annotations is None else coco_images(options.annotations, sources)
    videos = [source.path for source in sources if source.is_video]
    if videos:
        import_opencv(videos[0])
    detector = options.detector()
    detector.lowest_scores(settings.threshold)  # an error before anything is written
    settings.unwanted(detector.categories)
    font = None if options.font is None else str(options.font)
    if font is not None:
        load_font(12, font)
    letters = "" if options.no_pictures else missing_letters(detector.categories.names, font)
    if letters:
        print(missing_letters_text(letters, font), file=sys.stderr)
    make_folder(options.output, "output")
    outcomes = predict_files(
        detector,
        sources,
        settings,
        known=known,
        pictures=None if options.no_pictures else options.output / "pictures",
        font=font,
        every=options.every,
    )
    summary = _Summary(len(sources))
    predictions, images = (JsonList(options.output / name) for name in ("predictions.json", "images.json"))
    finished = False
    try:
        for outcome in Console(sys.stderr).bar(outcomes, "predict", "images", total=None if videos else len(sources)):
            summary.add(outcome)
            if outcome.found is not None:
                predictions.extend(outcome.results)  # first: an image in images.json has all its results
                images.extend([outcome.image])
        predictions.close()
        images.close()
        finished = True
    finally:
        if finished or summary.images:
            summary.print(options.output, options.threshold, not options.no_pictures)
    return 1 if summary.lines else 0
