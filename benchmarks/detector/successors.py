"""Time a training step with each switch of DINO's successors, as multiples of DINO's, on a CPU.

    python -m benchmarks.detector.successors                             all of them, three turns: half an hour
    python -m benchmarks.detector.successors --only varifocal --turns 5

Each run is a process of one thread: `dino_4scale_r50`, two images of 320x416 with 8 boxes each, forward and backward,
one step before those that count. Processor time, the fastest of all turns; peak resident memory of the process.
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
from benchmarks.measure.tables import as_text

SIZE, BOXES, STEPS = (320, 416), 8, 2
SWITCHES: dict[str, dict[str, Any]] = {
    "DINO": {},
    "varifocal": {"classification": "varifocal"},
    "iou_aware": {"classification": "iou_aware"},
    "mixed_matching": {"classification": "iou_aware", "mixed_matching": 2},
    "position": {"classification": "position", "class_weight": 6.0},
    "match_cost": {"match_cost": "position"},
    "memory_fusion": {"memory_fusion": True},
    "matchability": {"classification": "matchability"},
    "hybrid_queries": {"hybrid_queries": 1500},
    "multi_route": {"multi_route": True},
    "relation_bias": {"relation_bias": True},
    "tuned": {"freeze_stem": False, "class_weight": 2.0, "num_denoising": 300},
}


def measure(name: str) -> dict[str, float]:
    """Return the seconds of processor time of a step, the peak MiB of the process, and the parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = dino.build_model("dino_4scale_r50", pretrained_backbone=False, **SWITCHES[name]).train()
    criterion = dino.build_criterion(model.config)
    images, mask = torch.randn(2, 3, *SIZE), torch.zeros(2, *SIZE, dtype=torch.bool)
    truth = [{"boxes": torch.rand(BOXES, 4) * 0.3 + 0.2, "labels": torch.arange(BOXES)} for _ in range(2)]
    seconds = []
    for _ in range(1 + STEPS):
        start = time.process_time()
        criterion.weighted_total(criterion(model(images, mask, truth), truth)).backward()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds[1:]), "peak_mib": peak, "parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SWITCHES)[1:], help="switches to time beside DINO")
    parser.add_argument("--turns", type=int, default=3, help="turns of all of them; the fastest counts")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the child: the switch to measure
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(options.turns):
        for name in ("DINO", *(options.only or list(SWITCHES)[1:])):
            command = [sys.executable, "-m", "benchmarks.detector.successors", "--one", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.setdefault(name, []).append(json.loads(done.stdout))
            print(f"turn {turn + 1}: {name}, {found[name][-1]['seconds']:.2f} s", file=sys.stderr)
    least = {name: {key: min(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    base = least["DINO"]
    rows = [["switch", "time", "memory", "parameters"]]
    for name, run in least.items():
        more = (run["parameters"] - base["parameters"]) / 1e6
        ratios = run["seconds"] / base["seconds"], run["peak_mib"] / base["peak_mib"]
        rows.append([name, *(f"{ratio:.2f}" for ratio in ratios), f"+{more:.2f} M"])
    print(as_text(rows))


if __name__ == "__main__":
    main()
