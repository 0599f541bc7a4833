"""The GPU suite: every workload, backend and peer on one GPU, within minutes, into one JSON.

    python -m benchmarks.gpu.suite                          on the GPU, into build/gpu/results.json
    python -m benchmarks.gpu.suite --device cpu --short     everything but graphs, tiny, on a CPU: does it still run?

Parts come in order of importance until the budget is spent. The file is written after every step, and the same command
goes on behind the last one: finished parts are not measured again, those that failed or were cut short are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.workloads import (
    DECODER_900,
    DECODER_1100,
    ENCODER_5_SCALE,
    RF_DETR,
    RT_DETR,
    ENCODER_800x1333,
    miniature,
)
from benchmarks.gpu import candidates as gpu_candidates
from benchmarks.gpu import matching as gpu_matching
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu import tools as gpu_tools
from benchmarks.gpu.isolated import Part, run
from benchmarks.gpu.table import COUNTERS_PART, RED_PART, summary, targets
from benchmarks.matching.workloads import MatchingStep
from benchmarks.measure import machine
from benchmarks.measure.machine import NO_GPU, ROOT
from dino.common.files import write_text_whole
from dino_kernels.testing import Case

DEFAULT_RESULTS = Path("build/gpu/results.json")
# What has to be the same for two runs to share a file.
IDENTITY = ("device", "gpu", "torch", "triton", "commit", "sources", "short")
WORKLOADS = {
    "encoder B=1": ENCODER_800x1333,
    "encoder B=2": replace(ENCODER_800x1333, batch=2),
    "encoder B=4": replace(ENCODER_800x1333, batch=4),
    "encoder 5-scale": ENCODER_5_SCALE,
    "decoder Q=900": DECODER_900,
    "decoder Q=1100": DECODER_1100,
    "RT-DETR": RT_DETR,
    "RF-DETR": RF_DETR,
}
FUSED, CLASSIC = "fused_ms_deform_attn", "ms_deform_attn"
# (workload, op, dtype, seconds of a race), the important ones first.
SPEED = (
    ("encoder B=2", FUSED, "bf16", 3.0),
    ("decoder Q=1100", FUSED, "bf16", 2.0),
    ("encoder B=1", FUSED, "bf16", 2.0),
    ("encoder B=2", FUSED, "fp32", 2.0),
    ("decoder Q=1100", FUSED, "fp32", 1.0),
    ("decoder Q=900", FUSED, "bf16", 1.0),
    ("RT-DETR", FUSED, "bf16", 1.0),
    ("RF-DETR", FUSED, "bf16", 1.0),
    ("encoder 5-scale", FUSED, "bf16", 1.0),
    ("encoder B=4", FUSED, "bf16", 1.0),
    ("encoder B=2", CLASSIC, "bf16", 1.0),
    ("decoder Q=1100", CLASSIC, "bf16", 1.0),
    ("encoder B=1", FUSED, "fp32", 1.0),
    ("encoder B=2", CLASSIC, "fp32", 1.0),
    ("encoder B=2", FUSED, "fp16", 1.0),
    ("RT-DETR", FUSED, "fp32", 1.0),
    ("RF-DETR", FUSED, "fp32", 1.0),
    ("decoder Q=900", FUSED, "fp32", 1.0),
    ("encoder 5-scale", FUSED, "fp32", 1.0),
    ("encoder B=4", FUSED, "fp32", 1.0),
    ("RT-DETR", CLASSIC, "bf16", 1.0),
    ("decoder Q=900", CLASSIC, "bf16", 1.0),
    ("encoder B=1", CLASSIC, "bf16", 1.0),
    ("decoder Q=1100", FUSED, "fp16", 1.0),
)
# Timed without launches too, for peers that no graph can hold: (workload, dtype) of the fused op.
KERNELS = (("encoder B=2", "bf16"), ("decoder Q=1100", "bf16"), ("encoder B=2", "fp32"))
# Our kernels beside the compiled reference.
COMPILED = (("encoder B=2", "bf16"), ("decoder Q=1100", "bf16"), ("encoder B=2", "fp32"))
CANDIDATES = (("encoder B=2", "bf16"), ("encoder B=1", "bf16"), ("decoder Q=1100", "bf16"), ("encoder B=2", "fp32"))


def plan(device: str, short: bool) -> list[Part]:
    def case(name: str) -> Case:
        return miniature(WORKLOADS[name]) if short else WORKLOADS[name]

    def race(seconds: float) -> dict[str, Any]:
        return {"device": device, "seconds": 0.02 if short else seconds, "laps": 2 if short else 5}

    def small(step: MatchingStep) -> MatchingStep:
        return gpu_matching.miniature(step) if short else step

    parts = [
        Part(
            f"{name} {op} {dtype}",
            gpu_parts.speed,
            {"op": op, "case": case(name), "dtype": dtype, "kernels": op == FUSED and (name, dtype) in KERNELS}
            | race(seconds),
            needs_s=0.0 if short else 12.0,
            limit_s=90.0,  # one step; the first of a peer compiles its kernels
        )
        for name, op, dtype, seconds in SPEED
    ]
    compiled = [
        Part(
            f"{name} {FUSED} {dtype} compiled",
            gpu_parts.speed,
            {"op": FUSED, "case": case(name), "dtype": dtype, "names": gpu_parts.WITH_COMPILED, **race(1.0)},
            needs_s=0.0 if short else 60.0,
            limit_s=150.0,
        )
        for name, dtype in COMPILED
    ]
    candidates = [
        Part(
            f"candidates {name} {FUSED} {dtype}",
            gpu_candidates.speed,
            {"op": FUSED, "case": case(name), "dtype": dtype, **race(1.0)},
        )
        for name, dtype in CANDIDATES
    ]
    red = Part(RED_PART, gpu_tools.red_rate, {"device": device}, limit_s=gpu_tools.TOOL_S + 10)
    counters = Part(COUNTERS_PART, gpu_tools.nsight_compute, {"device": device}, limit_s=gpu_tools.TOOL_S + 10)
    one_image = {"case": case("encoder B=1"), "dtype": "bf16", "device": device}
    two_images = {"case": case("encoder B=2"), "dtype": "bf16", **race(1.0)}
    others = [
        Part("accuracy of grad_value", gpu_parts.accuracy, one_image),
        Part("saved for backward", gpu_parts.saved, one_image),
        Part("deterministic algorithms", gpu_parts.deterministic, two_images),
    ]
    matching = [
        Part(
            gpu_matching.part_name(name, job),
            gpu_matching.speed,
            {"job": job, "step": small(gpu_matching.STEPS[name]), **race(seconds)},
            needs_s=0.0 if short else 12.0,
            limit_s=90.0,
        )
        for name, job, seconds in gpu_matching.JOBS
    ]
    first = parts[:2] + matching[:1] + [red, *candidates] + matching[1:5] + [counters]
    return first + others + parts[2:6] + compiled + matching[5:] + parts[6:]


def sources() -> str:
    """A digest of what is measured and of what measures it: a commit does not tell changes that are not committed."""
    digest = hashlib.sha256()
    for folder, patterns in (("csrc", ("*.c*", "*.h")), ("dino_kernels", ("*.py",)), ("benchmarks", ("*.py", "*.cu"))):
        for path in sorted(path for pattern in patterns for path in (ROOT / folder).rglob(pattern)):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe(device: str, short: bool, commit: str | None) -> dict[str, Any]:
    facts = machine.describe(device) | {"sources": sources(), "short": short}
    return facts | {"commit": facts["commit"] or commit or None}


def opened(path: Path, facts: dict[str, Any], fresh: bool) -> dict[str, Any]:
    """The document to go on with: the file's, or a new one. Exits where the file is of something else."""
    if fresh or not path.exists():
        return {"machine": facts, "parts": {}, "targets": []}
    document = json.loads(path.read_text())
    before = document["machine"]
    different = [
        f"{name} {before.get(name)}, now {facts.get(name)}" for name in IDENTITY if before.get(name) != facts.get(name)
    ]
    if different:
        raise SystemExit(
            f"{path} was measured with another {'; another '.join(different)}.\n"
            "Keep it and give another --results, or measure everything again with --fresh."
        )
    for record in document["parts"].values():
        if record["status"] != "done":
            record |= {"status": "not done", "failures": {}}
    return document


def measure(parts: list[Part], document: dict[str, Any], path: Path, budget: float) -> None:
    def save() -> None:
        document["targets"] = targets(document)
        write_text_whole(path, json.dumps(document, indent=1) + "\n")

    path.parent.mkdir(parents=True, exist_ok=True)
    run(parts, document["parts"], time.time() + budget, save)
    save()


def failed(document: dict[str, Any]) -> bool:
    """A part did not end well, or one of our own kernels did not. A peer's failure is its own."""
    ours = (" cuda-", " triton-", " cpu-", " reference-")
    return any(
        record["status"] == "failed" or any(name in step for step in record["failures"] for name in ours)
        for record in document["parts"].values()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help=f"the JSON ({DEFAULT_RESULTS})")
    parser.add_argument("--budget", type=float, default=500.0, metavar="SECONDS", help="for everything (500)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--short", action="store_true", help="maps an eighth as wide and high, hardly a race")
    parser.add_argument("--only", metavar="TEXT", default="", help="parts whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="measure everything again, whatever the file has")
    parser.add_argument("--commit", help="what is measured, where there is no git to ask")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{NO_GPU}; python -m benchmarks.gpu.suite --device cpu --short is a dry run")
    everything = plan(options.device, options.short)
    parts = [part for part in everything if options.only in part.name]
    if not parts:
        names = "\n  ".join(part.name for part in everything)
        raise SystemExit(f"--only {options.only!r} names no part; there are:\n  {names}")
    if options.short:
        # Of the workers. Nobody reads the times, and threads that wait for each other take long on a busy machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    facts = describe(options.device, options.short, options.commit)
    document = opened(options.results, facts, options.fresh)
    measure(parts, document, options.results, options.budget)
    print(summary(document, [part.name for part in parts]))
    print(f"written: {options.results}")
    return int(failed(document))


if __name__ == "__main__":
    sys.exit(main())
