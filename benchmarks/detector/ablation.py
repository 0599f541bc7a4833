"""Train DINO with each of its contributions off on the demo's data: the paper's ablation table, small.

    python -m benchmarks.detector.ablation                       all variants, 3 epochs, seeds 0 and 1: an hour
    python -m benchmarks.detector.ablation --epochs 1 --seeds 0  a quick look
    python -m benchmarks.detector.ablation --publish             also write benchmarks/results/MACHINE/ablation.json

Every variant is trained from the same seeds on the same images. Rerun the command to resume: finished runs are
read from the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measure import machine
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text
from dino.commands.demo import IMAGE_SIZE, DemoOptions, demo_config
from dino.commands.demo.digits import make_digits_dataset
from dino.model.config import ModelConfig
from dino.training.config import TrainConfig
from dino.training.train import train

FILE_NAME = "ablation.json"
# By name, the fields that differ from the full model: first the paper's table 4, each row with one more contribution,
# then the full model without one of them.
VARIANTS: dict[str, dict[str, str]] = {
    "static queries, look forward once, plain denoising": {
        "query_selection": "static",
        "look_forward": "once",
        "denoising": "plain",
    },
    "+ pure query selection": {"query_selection": "pure", "look_forward": "once", "denoising": "plain"},
    "+ mixed query selection": {"look_forward": "once", "denoising": "plain"},
    "+ look forward twice": {"denoising": "plain"},
    "+ contrastive denoising = DINO": {},
    "DINO, no denoising": {"denoising": "off"},
    "DINO, look forward once": {"look_forward": "once"},
    "DINO, pure query selection": {"query_selection": "pure"},
    "DINO, static queries": {"query_selection": "static"},
}
METRICS = ("AP", "AP50", "AP75")


def train_once(about: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Train, or read the finished run in the output folder; return `about` and the metrics after the last epoch."""
    done = config.output / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    result = train(dataclasses.replace(config, resume=config.output.exists(), overwrite=False))
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    row = about | {"steps": result.step, "skipped": result.skipped_steps}
    row |= {metric: result.history[-1][metric] for metric in METRICS}
    row["history"] = [{key: entry[key] for key in ("epoch", *METRICS)} for entry in result.history]
    done.write_text(json.dumps(row))
    return row


def run_one(name: str, seed: int, epochs: int, data: Path, output: Path) -> dict[str, Any]:
    """Train a variant with a seed, or read its finished run; return its metrics after the last epoch."""
    base = demo_config(DemoOptions(epochs=epochs, seed=seed))
    model: ModelConfig = dataclasses.replace(base.model, **VARIANTS[name])  # pyright: ignore[reportArgumentType]
    about = {"variant": name, "fields": VARIANTS[name], "seed": seed, "epochs": epochs}
    return train_once(about, dataclasses.replace(base, data=data, output=output, model=model))


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per variant: means over the seeds in per cent, and each seed's AP."""
    rows = document["runs"]
    seeds = sorted({row["seed"] for row in rows})
    lines = [["model", *METRICS, *(f"AP, seed {seed}" for seed in seeds)]]
    for name in VARIANTS:
        runs = {row["seed"]: row for row in rows if row["variant"] == name}
        if runs:
            means = [f"{100 * mean(row[metric] for row in runs.values()):.1f}" for metric in METRICS]
            lines.append([name, *means, *(f"{100 * runs[s]['AP']:.1f}" if s in runs else "-" for s in seeds)])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of 250 steps each (3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="one training each (0 1)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder of the runs (runs/ablation)")
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    options = parser.parse_args()
    data = make_digits_dataset(options.output / "data", image_size=IMAGE_SIZE)
    facts = machine.describe("cpu")
    document = {"machine": facts, "epochs": options.epochs, "runs": []}
    folder = RESULTS / (machine.slug(facts) if options.publish else LATEST)
    for seed in options.seeds:
        for number, name in enumerate(VARIANTS):
            print(f"\n{name}, seed {seed}")
            output = options.output / f"variant{number}-seed{seed}-epochs{options.epochs}"
            document["runs"].append(run_one(name, seed, options.epochs, data, output))
            write_json(folder / FILE_NAME, document)
            print(f"\n{as_text(table(document))}\n{folder / FILE_NAME}")


if __name__ == "__main__":
    main()
