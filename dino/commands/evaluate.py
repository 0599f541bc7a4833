"""`python -m dino evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from dino.commands.parsing import ModelOptions, Number, OptionalFile, parse


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Score a model on a split of a data set by COCO's average precision.

    On several GPUs: torchrun --nproc-per-node N -m dino evaluate ...
    """

    data: Annotated[Path, arg(metavar="PATH")]
    """A data set: a folder or file in COCO, YOLO, Pascal VOC or CSV format."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split of the data set; valid is what the run held out if it was trained with --val-fraction."""
    results: OptionalFile = None
    """Write the detections to this file, in COCO's result format."""
    metrics: OptionalFile = None
    """Write the metrics to this file, as JSON."""
    batch_size: Number = 1
    """Images per forward pass. With more than 1, padding to the largest changes AP slightly: report AP with 1."""
    workers: Number = 2
    """Processes that load images; 0 loads them in this one."""
    skip_invalid: bool = False
    """List invalid annotations and unreadable images, and leave them out, instead of stopping."""


def evaluate_command(argv: Sequence[str]) -> None:
    """Evaluate and print a table."""
    options = parse(EvaluateOptions, "evaluate", argv)
    from dino.common.distributed import joined_ranks
    from dino.data import build_eval_dataset, build_loader, find_eval_split
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
            detector.model, loader, detector.categories, device=ranks.device, amp=options.amp
        )
        for problem in loader.problems:
            print(f"left out: {problem}", file=sys.stderr)
        if not ranks.first:
            return
    for line in dataset.index.describe_problems():
        print(line, file=sys.stderr)
    metrics = score(results, image_ids, dataset.index.ground_truth())
    print(metrics.table())
    for path, text in ((options.results, lambda: json.dumps(results)), (options.metrics, metrics.to_json)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(), encoding="utf-8")
            print(f"wrote {path}")


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
