"""Train one variant with one seed, and measure it: `python -m benchmarks.claims.run VARIANT SEED FOLDER`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.gradients import look_forward_numbers
from benchmarks.claims.probe import BATCH, probe
from benchmarks.claims.recipe import VARIANTS, training
from benchmarks.measure.results import write_json
from dino.checkpoint import load_model
from dino.commands.visualize import kept_checkpoints
from dino.data import build_loader
from dino.training.log import read_log
from dino.training.run import load_data
from dino.training.train import train

RESULT = "result.json"
LOGGED = ("loss_ce", "loss_bbox", "loss_giou", "gradient_norm")  # of the training's log
PICTURED = ("DINO", 0)  # keeps its checkpoints, for `benchmarks.claims.pictures`


def output_of(folder: Path, variant: str, seed: int) -> Path:
    """Return the output folder of a run."""
    return folder / f"{variant.replace(',', '').replace(' ', '-').lower()}-seed{seed}"


def result_of(output: Path) -> dict[str, Any]:
    """Return the result of a finished run."""
    return json.loads((output / RESULT).read_text())


def finished(folder: Path) -> list[dict[str, Any]]:
    """Return the results of all finished runs, by variant and seed."""
    rows = [result_of(path.parent) for path in folder.glob(f"*-seed*/{RESULT}")]
    known = [row for row in rows if row["variant"] in VARIANTS]
    return sorted(known, key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"]))


def training_losses(output: Path) -> dict[str, float]:
    """Return the losses of the last decoder layer and the gradient's norm, means over the last epoch of a training."""
    rows = [row for row in read_log(output / "log.csv") if "loss" in row]
    last = [row for row in rows if row["epoch"] > rows[-1]["epoch"] - 1]
    return {name: sum(row[name] for row in last) / len(last) for name in LOGGED}


def run(variant: str, seed: int, folder: Path) -> int:
    """Train, resuming what was stopped, and write the measurements of all epochs; return the exit code."""
    output, started = output_of(folder, variant, seed), time.monotonic()
    config = training(VARIANTS[variant], seed, folder, output)
    result = train(config)
    if result.stopped_by is not None:
        return result.exit_code
    data = load_data(dataclasses.replace(config, evaluate_every=1))
    checkpoints = kept_checkpoints(output)
    if len(checkpoints) != config.epochs:
        raise SystemExit(f"{output}: {len(checkpoints)} checkpoints of {config.epochs}. Delete the folder.")
    history = probe(checkpoints, data)
    if variant == "DINO":
        assert data.valid is not None
        batch = next(iter(build_loader(data.valid, BATCH, train=False)))
        for path, row in zip(checkpoints, history, strict=True):
            row["gradients"] = look_forward_numbers(load_model(path)[0].eval(), batch)
    history[-1]["training"] = training_losses(output)
    about = {"variant": variant, "seed": seed, "steps": result.step, "skipped": result.skipped_steps}
    about["seconds"] = round(time.monotonic() - started)
    write_json(output / RESULT, about | {"history": history})
    if (variant, seed) != PICTURED:
        shutil.rmtree(output / "checkpoints")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
