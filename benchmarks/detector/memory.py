"""Measure the peak memory of a training step over that of the model, each variant in a process of its own.

    python -m benchmarks.detector.memory              with and without recomputation: minutes, 8 GiB
    python -m benchmarks.detector.memory --publish    also write benchmarks/results/MACHINE/step_memory.json

Counted is what a step needs over weights and optimiser state: activations, gradients and temporary memory. On a CPU it
is the resident memory (Linux), on a GPU that of torch's allocator.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text
from dino.checkpoint import build_model
from dino.common.distributed import Ranks
from dino.data import Batch, collate
from dino.model.criterion import SetCriterion
from dino.training.config import TrainConfig
from dino.training.optimizer import build_optimizer
from dino.training.precision import Precision
from dino.training.step import Step

FILE_NAME = "step_memory.json"
PRESET, BATCH, SIZE, BOXES = "dino_4scale_r50", 2, (800, 1333), 8
SMALL = (320, 320)
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, `gradient_checkpointing`": {"gradient_checkpointing": True},
}
GIB = 2**30


def batch_of(size_hw: tuple[int, int]) -> Batch:
    """Return a batch of noise, each image with `BOXES` boxes."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for image_id in range(BATCH):
        target = {"image_id": image_id, "labels": torch.arange(BOXES), "size_hw": torch.tensor(size_hw)}
        target["boxes"] = torch.rand(BOXES, 4, generator=generator) / 4 + 0.25
        samples.append((torch.randn(3, *size_hw, generator=generator), target))
    return collate(samples)


def build_step(device: torch.device, amp: str = "off", static: bool = False, **overrides: Any) -> Step:
    """Build a model and return its training step; `overrides` are fields of the model."""
    torch.manual_seed(0)
    model = build_model(PRESET, pretrained_backbone=False, **overrides).to(device).train()
    optimizer = build_optimizer(model, TrainConfig(Path(), static=static))
    ranks, precision = Ranks(0, 1, device), Precision(amp, device.type)
    return Step(model, SetCriterion(model.config), optimizer, precision, ranks, clip=0.1, static=static)


def step_of(device: torch.device, **overrides: Any) -> Callable[[Batch], object]:
    """Build a model, and return what takes a whole training step."""
    step = build_step(device, **overrides)

    def call(batch: Batch) -> object:
        step([batch])
        return step.finish()

    return call


def peak(step: Callable[[Batch], object], device: torch.device) -> dict[str, float]:
    """Return the peak GiB of a step on large images, after one on small images."""
    step(batch_of(SMALL))  # the optimiser's state, thread pools
    batch = batch_of(SIZE)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed blocks, and would reuse them unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _status("VmRSS")
    step(batch)
    highest = torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")
    return {"peak_gib": round((highest - before) / GIB, 3)}


def _status(name: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per variant, with its share of the first one's memory."""
    runs = document["runs"]
    cells = [[run["variant"], run["peak_gib"], run["peak_gib"] / runs[0]["peak_gib"]] for run in runs]
    return [["model", "peak GiB", "share"], *([name, f"{peak:.2f}", f"{share:.0%}"] for name, peak, share in cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the child: the variant to measure
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.one is not None:
        print(json.dumps(peak(step_of(device, **VARIANTS[options.one]), device)))
        return
    facts = machine.describe(device.type)
    document = {"machine": facts, "model": PRESET, "batch": BATCH, "size": SIZE, "boxes": BOXES, "runs": []}
    for name in VARIANTS:
        print(f"{name} ...", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.detector.memory", "--one", name]
        measured = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        document["runs"].append({"variant": name, **json.loads(measured.splitlines()[-1])})
    path = RESULTS / (machine.slug(facts) if options.publish else LATEST) / FILE_NAME
    write_json(path, document)
    print(f"{as_text(table(document))}\n{path}")


if __name__ == "__main__":
    main()
