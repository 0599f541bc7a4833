"""Measure every workload, backend and peer on one GPU, within minutes, into one JSON: the GPU suite.

    python -m benchmarks.gpu.suite                          on the GPU, into build/gpu/results.json
    python -m benchmarks.gpu.suite --device cpu --short     everything but graphs, tiny, on a CPU: a dry run

Parts come in order of importance until the budget is spent. The file is written after every step. Rerun the command to
resume: finished parts are skipped, failed and interrupted ones are retried.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attention.workloads import (
    DECODER_900,
    DECODER_1100,
    ENCODER_5_SCALE,
    RF_DETR,
    RT_DETR,
    ENCODER_800x1333,
    miniature,
)
from benchmarks.gpu import matching as gpu_matching
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu import session
from benchmarks.gpu import tools as gpu_tools
from benchmarks.gpu.isolated import Part, run
from benchmarks.gpu.table import COUNTERS_PART, RED_PART, summary, targets
from benchmarks.measure.machine import ROOT
from benchmarks.measure.results import write_json

DEFAULT_RESULTS = Path("build/gpu/results.json")
# Two runs may share a file if these are the same.
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
# (workload, dtype) of the fused op: timed without launches too, for peers that no graph can hold, and beside the
# compiled reference.
KERNELS = (("encoder B=2", "bf16"), ("decoder Q=1100", "bf16"), ("encoder B=2", "fp32"))


def plan(device: str, short: bool) -> list[Part]:
    """Return all parts, the important ones first."""

    def attention(measure: Callable[..., None], label: str, name: str, dtype: str, **others: Any) -> Part:
        case = miniature(WORKLOADS[name]) if short else WORKLOADS[name]
        limits = {key: others.pop(key) for key in ("needs_s", "limit_s") if key in others}
        return Part(label, measure, {"case": case, "dtype": dtype, "device": device, **others}, **limits)

    def race(seconds: float) -> dict[str, Any]:
        return {"seconds": 0.02 if short else seconds, "laps": 2 if short else 5}

    def tool(name: str, measure: Callable[..., None]) -> Part:
        return Part(name, measure, {"device": device}, limit_s=gpu_tools.TOOL_S + 10)

    # The limit of one step: the first of a peer compiles its kernels.
    timed = {"needs_s": 0.0 if short else 12.0, "limit_s": 90.0}
    speed = [
        attention(
            gpu_parts.speed,
            f"{name} {op} {dtype}",
            name,
            dtype,
            op=op,
            kernels=op == FUSED and (name, dtype) in KERNELS,
            **race(seconds),
            **timed,
        )
        for name, op, dtype, seconds in SPEED
    ]
    slow = {"needs_s": 0.0 if short else 60.0, "limit_s": 150.0, "op": FUSED, "names": gpu_parts.WITH_COMPILED}
    compiled = [
        attention(gpu_parts.speed, f"{name} {FUSED} {dtype} compiled", name, dtype, **slow, **race(1.0))
        for name, dtype in KERNELS
    ]
    others = [
        attention(gpu_parts.accuracy, "accuracy of grad_value", "encoder B=1", "bf16"),
        attention(gpu_parts.saved, "saved for backward", "encoder B=1", "bf16"),
        attention(gpu_parts.deterministic, "deterministic algorithms", "encoder B=2", "bf16", **race(1.0)),
    ]
    matching = []
    for name, job, seconds in gpu_matching.JOBS:
        step = gpu_matching.miniature(gpu_matching.STEPS[name]) if short else gpu_matching.STEPS[name]
        arguments = {"job": job, "step": step, "device": device, **race(seconds)}
        matching.append(Part(gpu_matching.part_name(name, job), gpu_matching.speed, arguments, **timed))
    first = speed[:2] + matching[:1] + [tool(RED_PART, gpu_tools.red_rate)] + matching[1:5]
    first.append(tool(COUNTERS_PART, gpu_tools.nsight_compute))
    return first + others + speed[2:6] + matching[5:] + speed[6:12] + compiled + speed[12:]


def sources() -> str:
    """Return a digest of what is measured and of what measures it, which uncommitted changes change too."""
    digest = hashlib.sha256()
    for folder, patterns in (("csrc", ("*.c*", "*.h")), ("dino_kernels", ("*.py",)), ("benchmarks", ("*.py", "*.cu"))):
        for path in sorted(path for pattern in patterns for path in (ROOT / folder).rglob(pattern)):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def opened(path: Path, facts: dict[str, Any], fresh: bool) -> dict[str, Any]:
    """Return the document to resume: the file's, or a new one.

    Raises:
        SystemExit: the file has results of something else.
    """
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
        write_json(path, document)

    run(parts, document["parts"], time.time() + budget, save)
    save()


def failed(document: dict[str, Any]) -> bool:
    """Return whether a part or one of our own kernels failed. A failing peer does not count."""
    ours = (" cuda", " triton", " cpu", " reference")
    return any(
        record["status"] == "failed" or any(name in step for step in record["failures"] for name in ours)
        for record in document["parts"].values()
    )


def main() -> int:
    parser = session.parser("benchmarks.gpu.suite", __doc__, DEFAULT_RESULTS)
    parser.add_argument("--budget", type=float, default=500.0, metavar="SECONDS", help="for everything (500)")
    parser.add_argument("--short", action="store_true", help="maps an eighth as wide and high, hardly a race")
    parser.add_argument("--fresh", action="store_true", help="measure everything again, whatever the file has")
    options = parser.parse_args()
    dry_run = "python -m benchmarks.gpu.suite --device cpu --short"
    parts = session.start(options, dry_run, partial(plan, options.device, options.short))
    facts = session.facts(options) | {"sources": sources(), "short": options.short}
    document = opened(options.results, facts, options.fresh)
    measure(parts, document, options.results, options.budget)
    print(summary(document, [part.name for part in parts]))
    print(f"written: {options.results}")
    return int(failed(document))


if __name__ == "__main__":
    sys.exit(main())
