"""`python -m dino evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dino.commands.parsing import ModelOptions, Number, OptionalFile, parse


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Score a model on a split of a data set by COCO's average precision.

    On several GPUs: torchrun --nproc-per-node N -m dino evaluate ...
    """

    data: Annotated[Path, arg(metavar="FOLDER")]
    """A data set in COCO format."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split of the data set."""
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
    from dino.data import build_eval_dataset, build_loader, find_splits
    from dino.evaluation.coco_metrics import score
    from dino.evaluation.evaluate import predict_results

    with joined_ranks(options.device) as ranks:
        split = find_splits(options.data).require(options.split)
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
