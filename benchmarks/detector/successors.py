"""Measure what each switch of DINO's successors costs beyond DINO, on a CPU.

    python -m benchmarks.detector.successors                          all of them, three turns: half an hour
    python -m benchmarks.detector.successors --only relation_bias     DINO and some; what is recorded of others stays
    python -m benchmarks.detector.successors --publish                into benchmarks/results/MACHINE/successors.json

Each run is a process of one thread: `dino_4scale_r50`, two images of 320x416 with 8 boxes each, forward and backward,
one step before those that count. Counted are the operations that a training step and inference start, views left out;
measured are processor time, the least of all turns, and the peak resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

import dino
from benchmarks.measure import machine
from benchmarks.measure.launches import Launches
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text
from dino.model.targets import pack

FILE_NAME = "successors.json"
PRESET, SIZE, BOXES, STEPS = "dino_4scale_r50", (320, 416), 8, 2
SWITCHES: dict[str, dict[str, Any]] = {
    "DINO": {},
    "classification varifocal": {"classification": "varifocal"},
    "classification iou_aware": {"classification": "iou_aware"},
    "mixed_matching 2, iou_aware": {"classification": "iou_aware", "mixed_matching": 2},
    "classification position": {"classification": "position", "class_weight": 6.0},
    "match_cost position": {"match_cost": "position"},
    "memory_fusion": {"memory_fusion": True},
    "classification matchability": {"classification": "matchability"},
    "hybrid_queries 1500": {"hybrid_queries": 1500},
    "multi_route": {"multi_route": True},
    "relation_bias": {"relation_bias": True},
    "dino_4scale_r50_tuned": {"freeze_stem": False, "class_weight": 2.0, "num_denoising": 300},
}


def measure(name: str) -> dict[str, float]:
    """Return the seconds of processor time of a step, the peak MiB of the process, operations and parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = dino.build_model(PRESET, pretrained_backbone=False, **SWITCHES[name]).train()
    criterion = dino.build_criterion(model.config)
    images, mask = torch.randn(2, 3, *SIZE), torch.zeros(2, *SIZE, dtype=torch.bool)
    boxes = [{"boxes": torch.rand(BOXES, 4) * 0.3 + 0.2, "labels": torch.arange(BOXES)} for _ in range(2)]
    truth = pack(boxes, images.device, model.config.num_classes)  # before the step, as the loader does

    def step() -> None:
        criterion.weighted_total(criterion(model(images, mask, truth), truth)).backward()

    step()
    seconds = []
    for _ in range(STEPS):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.zero_grad()
    with Launches() as training:
        step()
    with Launches() as inference, torch.no_grad():
        model.eval()(images, mask)
    return {
        "seconds": min(seconds),
        "peak_mib": peak,
        "training": training.count,
        "inference": inference.count,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per switch with what it costs beyond DINO."""
    runs = document["runs"]
    base = runs["DINO"]
    rows = [["switch", "operations of a training step", "of inference", "time", "memory", "parameters"]]
    rows.append(["DINO", f"{base['training']:,}", f"{base['inference']:,}", "1", "1", f"{base['parameters']:,}"])
    for name, run in runs.items():
        if name == "DINO":
            continue
        more = [run[key] - base[key] for key in ("training", "inference", "parameters")]
        operations, inference, parameters = (f"{count:+,}" if count else "-" for count in more)
        ratios = (f"{run[key] / base[key]:.1f}x" for key in ("seconds", "peak_mib"))
        rows.append([f"`{name}`", operations, inference, *ratios, parameters])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SWITCHES)[1:], help="switches to measure beside DINO")
    parser.add_argument("--turns", type=int, default=3, help="turns of all of them; the least counts")
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the child: the switch to measure
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    torch.set_num_threads(1)
    facts = machine.describe("cpu")
    path = RESULTS / (machine.slug(facts) if options.publish else LATEST) / FILE_NAME
    recorded = json.loads(path.read_text())["runs"] if path.exists() else {}
    document = {"machine": facts, "model": PRESET, "size": SIZE, "boxes": BOXES}
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(options.turns):
        for name in ("DINO", *(options.only or list(SWITCHES)[1:])):
            command = [sys.executable, "-m", "benchmarks.detector.successors", "--one", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=machine.ROOT)
            found.setdefault(name, []).append(json.loads(done.stdout))
            print(f"turn {turn + 1}: {name}, {found[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
            recorded[name] = {key: min(run[key] for run in found[name]) for key in found[name][0]}
            document["runs"] = {each: recorded[each] for each in SWITCHES if each in recorded}
            write_json(path, document)
    print(f"{as_text(table(document))}\n{path}")


if __name__ == "__main__":
    main()
