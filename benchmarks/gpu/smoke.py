"""Does every kernel family work on this GPU? Each check in a process of its own, in two minutes, into one JSON.

    python3 -m benchmarks.gpu.smoke                 on the GPU, into build/gpu/smoke.json
    python3 -m benchmarks.gpu.smoke --device cpu    the same checks of the CPU kernels: does the smoke run itself work?

A check that crashes or hangs costs its step and nothing else. Exits with 1 where a check failed or was not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.candidates import candidates
from benchmarks.gpu.isolated import Part, Record, new_record, run
from benchmarks.gpu.smoke_checks import checks
from benchmarks.measure import machine
from benchmarks.measure.machine import NO_GPU
from dino.common.files import write_text_whole
from dino_kernels.ops._core import libraries

DEFAULT_RESULTS = Path("build/gpu/smoke.json")
LONGEST_DETAIL = 300
PASSED, FAILED, SKIPPED, UNFINISHED = "passed", "FAILED", "not run", "NOT FINISHED"


def run_all(parts: Sequence[Part], document: dict[str, Any], path: Path, seconds: float, jobs: int) -> None:
    """Do the checks, `jobs` at a time and each in a process of its own; the file is written after every event."""
    records: dict[str, Record] = document["checks"]
    records |= {part.name: new_record() for part in parts}
    until, lock = time.time() + seconds, threading.Lock()
    path.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        with lock:
            write_text_whole(path, json.dumps(document, indent=1) + "\n")

    save()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(lambda part: run([part], {part.name: records[part.name]}, until, save), parts))
    for part in parts:
        records[part.name]["result"], records[part.name]["detail"] = outcome(records[part.name])
    document["seconds"] = round(seconds - until + time.time(), 1)
    save()


def outcome(record: Record) -> tuple[str, str]:
    """(PASSED, FAILED, SKIPPED or UNFINISHED, what there is to say of it)."""
    failures = [f"{step}: {reason}" for step, reason in record["failures"].items()]
    if record["status"] == "failed" or failures:
        return FAILED, "; ".join([*failures, record.get("reason", "")]).strip("; ")
    if record["status"] != "done":
        return UNFINISHED, f"out of time after {len(record['steps'])} steps"
    if not record["steps"]:
        return SKIPPED, "; ".join(sorted(set(record["not_run"].values())))
    return PASSED, f"{len(record['steps'])} step{'' if len(record['steps']) == 1 else 's'}"


def table(document: dict[str, Any]) -> str:
    """A line for each check: name, result, seconds behind the start of its process, what there is to say."""
    lines, widest = [], max(map(len, document["checks"]))
    for name, record in document["checks"].items():
        detail = " ".join(record["detail"].split())
        if len(detail) > LONGEST_DETAIL:
            detail = detail[: LONGEST_DETAIL - 3] + "..."
        lines.append(f"{name:{widest}}  {record['result']:12} {record['seconds']:6.1f} s  {detail}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help=f"the JSON ({DEFAULT_RESULTS})")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=105.0, help="for everything (105; 10 more for what is begun)")
    parser.add_argument("--jobs", type=int, help="checks at a time (half of the cores, at most 8)")
    parser.add_argument("--only", metavar="TEXT", default="", help="checks whose name contains this")
    parser.add_argument("--commit", help="what is checked, where there is no git to ask")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{NO_GPU}; python -m benchmarks.gpu.smoke --device cpu is a dry run")
    everything = checks(options.device)
    parts = [part for part in everything if options.only in part.name]
    if not parts:
        names = "\n  ".join(part.name for part in everything)
        raise SystemExit(f"--only {options.only!r} names no check; there are:\n  {names}")
    if options.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, which share the cores
    facts = machine.describe(options.device)
    document: dict[str, Any] = {
        "machine": facts | {"commit": facts["commit"] or options.commit or None},
        "cuda_library": libraries.CUDA_MISSING or "usable",
        "candidates": [candidate.id for candidate in candidates() if options.device == "cuda"],
        "checks": {},
    }
    jobs = options.jobs or min(8, max(1, (os.cpu_count() or 2) // 2))
    run_all(parts, document, options.results, options.seconds, jobs)
    print(machine.caption(document["machine"]))
    print(table(document))
    print(f"{document['seconds']} s; written: {options.results}")
    good = (PASSED, SKIPPED)
    return int(any(record["result"] not in good for record in document["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
