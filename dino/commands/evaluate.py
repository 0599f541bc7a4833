"""`python -m dino evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from dino.commands.parsing import Number, OptionalFile, OptionalFolder, RunOptions, parse
from dino.common.files import make_folder
from dino.common.text import command_line, counted, percent, shorten

if TYPE_CHECKING:
    from dino.data import CocoIndex
    from dino.evaluation.coco_metrics import CocoMetrics
    from dino.inference.detector import Detector


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions):
    """Score a model on a split of a data set by COCO's average precision.

    Writes a report, report.html: curves, errors by class and kind, a confusion matrix, and the worst images. On the
    valid split, the best threshold of each class is stored with the model, for predict --threshold best.

    On several GPUs: torchrun --nproc-per-node N -m dino evaluate ...
    """

    data: Annotated[Path, arg(metavar="PATH")]
    """A data set: a folder or file in COCO, YOLO, Pascal VOC, CSV or WebDataset format."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split of the data set; valid is what the run held out if it was trained with --val-fraction."""
    report: OptionalFolder = None
    """Where to write the report; by default evaluation/SPLIT in the checkpoint's folder."""
    no_report: bool = False
    """Write no report, and store no thresholds."""
    results: OptionalFile = None
    """Write the detections to this file, in COCO's result format."""
    metrics: OptionalFile = None
    """Write the metrics to this file, as JSON."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Precision; other than float32 changes AP slightly. Auto is bfloat16 on a CPU with instructions for it."""
    batch_size: Number = 1
    """Images per forward pass. With more than 1, padding to the largest changes AP slightly: report AP with 1."""
    workers: Number = 2
    """Processes that load images; 0 loads them in this one."""
    skip_invalid: bool = False
    """List invalid annotations and unreadable images, and leave them out, instead of stopping."""


def evaluate_command(argv: Sequence[str]) -> None:
    """Evaluate, print a table, and write the report."""
    options = parse(EvaluateOptions, "evaluate", argv)
    from dino.common.distributed import joined_ranks
    from dino.data import DatasetError, build_eval_dataset, build_loader, find_eval_split
    from dino.evaluation.coco_metrics import score
    from dino.evaluation.evaluate import predict_results

    with joined_ranks(options.device) as ranks:
        split = find_eval_split(options.data, options.split, **held_out_options(options.checkpoint))
        if split.choose is not None and ranks.first:
            print(f"{options.split}: a part of {split.name}, by the --val-fraction of the run")
        detector = options.detector(ranks.device)
        dataset = build_eval_dataset(
            split,
            detector.categories,
            transform=detector.transform,
            skip_invalid=options.skip_invalid,
            strict=not options.skip_invalid,
        )
        if ranks.first:
            _check_files(options)
        folder = None if options.no_report or not ranks.first else _report_folder(options)
        loader = build_loader(
            dataset,
            options.batch_size,
            train=False,
            workers=options.workers,
            rank=ranks.rank,
            world_size=ranks.size,
            pin_memory=ranks.device.type == "cuda",
        )
        results, image_ids = predict_results(
            detector.run, loader, detector.categories, device=ranks.device, amp=detector.amp
        )
        unreadable = [problem for part in ranks.gather(loader.problems) for problem in part]
        if not ranks.first:
            return
    index = dataset.index
    left_out = [f"{p.where}: {p.what}" for p in index.problems if p.collection == "images"]
    left_out += dict.fromkeys(unreadable)  # several processes may have tried the same image
    if not image_ids:
        raise DatasetError(f"{split.annotations}: no image of the split can be read. The first: {left_out[0]}")
    metrics = score(results, image_ids, index.ground_truth(), detector.categories)
    print(metrics.table())
    for path, text in ((options.results, lambda: json.dumps(results)), (options.metrics, metrics.to_json)):
        if path is not None:
            path.write_text(text(), encoding="utf-8", errors="backslashreplace")  # JSON can hold half a character
            print(f"wrote {path}")
    if folder is not None:
        _report(options, folder, detector, metrics, results, image_ids, index, left_out)
    for line in index.describe_problems():
        print(line, file=sys.stderr)
    if left_out:
        total = counted(index.totals["images"], "image")
        print(f"left out: {len(left_out):,} of {total}: {shorten(left_out, 10, '; ')}", file=sys.stderr)


def _check_files(options: EvaluateOptions) -> None:
    """Make the folders of the files to write, before the evaluation, which can take hours."""
    for option in ("results", "metrics"):
        path: Path | None = getattr(options, option)
        if path is not None and path.is_dir():
            raise ValueError(f"{option}: {path} is a folder. Pass a file in it, for example {path / option}.json")
        if path is not None:
            make_folder(path.parent, option)


def _report_folder(options: EvaluateOptions) -> Path:
    """Return the folder of the report, created before the evaluation, which can take hours."""
    checkpoint = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
    folder = options.report or checkpoint / "evaluation" / options.split
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"report: {folder} cannot be created ({error.strerror}). Pass --report FOLDER, or --no-report"
        ) from error
    return folder


def _report(
    options: EvaluateOptions,
    folder: Path,
    detector: Detector,
    metrics: CocoMetrics,
    results: list[dict[str, Any]],
    image_ids: list[int],
    index: CocoIndex,
    left_out: list[str],
) -> None:
    """Store the best thresholds, and write the report."""
    from dino.checkpoint.thresholds import Thresholds, save_thresholds
    from dino.evaluation.analysis import analyse
    from dino.report.page import Subject
    from dino.report.write import REPORT_FILE, write_report

    print("writing the report ...", file=sys.stderr)
    analysis = analyse(results, image_ids, index.ground_truth(), detector.categories)
    best, stored = analysis.pooled.best, None
    # Thresholds chosen on training or test images would flatter the model there and misjudge it elsewhere.
    if best is not None and options.split == "valid" and detector.file is not None:
        source = {"data": str(options.data.resolve()), "split": options.split, "images": metrics.num_images}
        source |= {"boxes": metrics.num_boxes, "short_side": detector.transform.short_side, "dtype": detector.dtype}
        thresholds = Thresholds(analysis.thresholds, best.threshold, source)
        try:
            stored = str(save_thresholds(detector.file, thresholds))
        except OSError as error:
            print(f"thresholds are not stored: {error}", file=sys.stderr)
    subject = Subject(
        model=str(options.checkpoint),
        data=f"{options.data} ({options.split})",
        images_in_split=index.totals["images"],
        left_out=tuple(left_out),
        predict=command_line("predict", "--checkpoint", options.checkpoint, "--threshold", "best", "IMAGES")
        if stored
        else "",
        thresholds_file=stored,
    )
    write_report(folder, subject, metrics, analysis, index)
    if best is not None:
        print(f"best threshold for all classes: {best.threshold:g} (F1 {percent(best.f1)})")
    elif options.split == "valid":
        print("no best threshold to store: no detection is right at any")
    if stored:
        print(f"stored the best threshold of each class in {stored}; predict --threshold best uses them")
    print(f"wrote {folder / REPORT_FILE}")


def held_out_options(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of `find_eval_split` from the config.json of a model's run; nothing without one."""
    from dino.checkpoint.find import find_model

    try:
        folder = find_model(checkpoint).parent
    except FileNotFoundError:
        return {}  # an error when the model is loaded
    # The model is in the run's folder, in best/ or final/, or in checkpoints/step-.../.
    file = next(
        (place / "config.json" for place in (folder, *folder.parents[:2]) if (place / "config.json").is_file()), None
    )
    try:
        config = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        fraction = float(config.get("val_fraction", 0))
    except (ValueError, TypeError, AttributeError):
        return {}  # not the file of a run
    return {"val_fraction": fraction, "seed": config["seed"], "trained_on": config["data"]} if fraction else {}
