"""Train the demo's small model in every mode: do the kernels, 16 bit, compilation or replaying change what is learnt?

    python -m benchmarks.detector.precision                    1,000 steps in every mode with seeds 0, 1 and 2
    python -m benchmarks.detector.precision --modes "kernels, bf16" --seeds 0
    python -m benchmarks.detector.precision --publish          also write benchmarks/results/MACHINE/precision.json

Images of 96 pixels, 4 a step, so that a run takes minutes. Rerun the command to resume: finished runs are read from
the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import dino_kernels
import dino_kernels.nn.ms_deform_attn
from benchmarks.measure import machine
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text
from dino.commands.demo import DemoOptions, demo_config
from dino.commands.demo.digits import DigitsConfig, make_digits_dataset
from dino.training.config import TrainConfig
from dino.training.train import train

FILE_NAME = "precision.json"
IMAGE_SIZE = 96
METRICS = ("AP", "AP50", "AP75")
PYTORCH = "PyTorch operators, float32"
# By name, the options of the run.
MODES: dict[str, dict[str, Any]] = {
    "kernels, float32": {},
    PYTORCH: {},
    "kernels, static, float32": {"static": True, "pad_to": IMAGE_SIZE},
    "kernels, compiled, float32": {"compile": True, "pad_to": IMAGE_SIZE},
    "kernels, bf16": {"amp": "bf16"},
    "kernels, fp16": {"amp": "fp16"},
}


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


@contextmanager
def pytorch_operators(active: bool) -> Iterator[None]:
    """Compute deformable attention and matching with the references in PyTorch, if `active`."""

    def reference(op: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: op(*arguments, **(options | {"backend": "reference"}))

    attention = dino_kernels.nn.ms_deform_attn
    if not active:
        yield
        return
    with (
        mock.patch.object(attention, "fused_ms_deform_attn", reference(attention.fused_ms_deform_attn)),
        mock.patch.object(dino_kernels, "hungarian_match", reference(dino_kernels.hungarian_match)),
    ):
        yield


def run_one(name: str, seed: int, data: Path, output: Path) -> None:
    """Train in a mode with a seed and write the result, unless that was done."""
    config = dataclasses.replace(
        demo_config(DemoOptions(epochs=2, seed=seed)),
        data=data,
        output=output,
        batch_size=4,
        short_sides=(IMAGE_SIZE,),
        long_side=IMAGE_SIZE,
        **MODES[name],
    )
    with pytorch_operators(name == PYTORCH):
        train_once({"mode": name, "seed": seed}, config)


def finished(output: Path) -> list[dict[str, Any]]:
    """Return the results of all runs in the output folder, by mode and seed."""
    rows = [json.loads(path.read_text()) for path in output.glob("*/result.json")]
    return sorted(rows, key=lambda row: (list(MODES).index(row["mode"]), row["seed"]))


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per mode: steps, steps that were not finite, and AP of each seed in per cent."""
    rows = document["runs"]
    seeds = sorted({row["seed"] for row in rows})
    lines = [["mode", "steps", "not finite", *(f"AP, seed {seed}" for seed in seeds), "mean"]]
    for name in MODES:
        runs = {row["seed"]: row for row in rows if row["mode"] == name}
        if runs:
            aps = [f"{100 * runs[seed]['AP']:.1f}" if seed in runs else "-" for seed in seeds]
            counts = [str(sum(row[key] for row in runs.values())) for key in ("steps", "skipped")]
            lines.append([name, *counts, *aps, f"{100 * mean(row['AP'] for row in runs.values()):.1f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each (0 1 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/precision"), help="folder of the runs")
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    options = parser.parse_args()
    digits = DigitsConfig(train_images=2000, valid_images=200, image_size=IMAGE_SIZE, seed=0)
    data = options.output / "data"
    make_digits_dataset(data, digits)
    facts = machine.describe("cpu")
    folder = RESULTS / (machine.slug(facts) if options.publish else LATEST)
    for name in options.modes:
        for seed in options.seeds:
            print(f"\n{name}, seed {seed}")
            output = options.output / f"{'-'.join(name.replace(',', '').split())}-seed{seed}"
            run_one(name, seed, data, output)
            document = {"machine": facts, "runs": finished(options.output)}
            write_json(folder / FILE_NAME, document)
            print(f"\n{as_text(table(document))}\n{folder / FILE_NAME}")


if __name__ == "__main__":
    main()
