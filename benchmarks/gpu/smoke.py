"""Check that every kernel family works on this GPU, each check in its own process, in two minutes, into one JSON.

    python3 -m benchmarks.gpu.smoke                 on the GPU, into build/gpu/smoke.json
    python3 -m benchmarks.gpu.smoke --device cpu    the same checks of the CPU kernels: a dry run

A check that crashes or hangs costs its step and nothing else. Exits with 1 if a check failed or did not finish.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import session
from benchmarks.gpu.isolated import Part, Record, new_record, run
from benchmarks.gpu.smoke_checks import checks
from benchmarks.measure import machine
from benchmarks.measure.results import write_json
from dino_kernels.ops._core import libraries

DEFAULT_RESULTS = Path("build/gpu/smoke.json")
LONGEST_DETAIL = 300
PASSED, FAILED, SKIPPED, UNFINISHED = "passed", "FAILED", "not run", "NOT FINISHED"


def run_all(parts: Sequence[Part], document: dict[str, Any], path: Path, seconds: float, jobs: int) -> None:
    """Do the checks, `jobs` at a time and each in its own process; write the file after every event."""
    records: dict[str, Record] = document["checks"]
    records |= {part.name: new_record() for part in parts}
    until, lock = time.time() + seconds, threading.Lock()

    def save() -> None:
        with lock:
            write_json(path, document)

    save()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(lambda part: run([part], {part.name: records[part.name]}, until, save), parts))
    for part in parts:
        records[part.name]["result"], records[part.name]["detail"] = outcome(records[part.name])
    document["seconds"] = round(seconds - until + time.time(), 1)
    save()


def outcome(record: Record) -> tuple[str, str]:
    """Return PASSED, FAILED, SKIPPED or UNFINISHED, and the details."""
    failures = [f"{step}: {reason}" for step, reason in record["failures"].items()]
    if record["status"] == "failed" or failures:
        return FAILED, "; ".join([*failures, record.get("reason", "")]).strip("; ")
    if record["status"] != "done":
        return UNFINISHED, f"out of time after {len(record['steps'])} steps"
    if not record["steps"]:
        return SKIPPED, "; ".join(sorted(set(record["not_run"].values())))
    return PASSED, f"{len(record['steps'])} step{'' if len(record['steps']) == 1 else 's'}"


def table(document: dict[str, Any]) -> str:
    """Make a line for each check: name, result, seconds, details."""
    lines, widest = [], max(map(len, document["checks"]))
    for name, record in document["checks"].items():
        detail = " ".join(record["detail"].split())
        if len(detail) > LONGEST_DETAIL:
            detail = detail[: LONGEST_DETAIL - 3] + "..."
        lines.append(f"{name:{widest}}  {record['result']:12} {record['seconds']:6.1f} s  {detail}")
    return "\n".join(lines)


def main() -> int:
    parser = session.parser("benchmarks.gpu.smoke", __doc__, DEFAULT_RESULTS)
    parser.add_argument("--seconds", type=float, default=105.0, help="for everything (105; 10 more at the end)")
    parser.add_argument("--jobs", type=int, help="checks at a time (half of the cores, at most 8)")
    options = parser.parse_args()
    dry_run = "python -m benchmarks.gpu.smoke --device cpu"
    parts = session.start(options, dry_run, partial(checks, options.device))
    document: dict[str, Any] = {
        "machine": session.facts(options),
        "cuda_library": libraries.CUDA_MISSING or "usable",
        "checks": {},
    }
    jobs = options.jobs or min(8, max(1, (os.cpu_count() or 2) // 2))
    run_all(parts, document, options.results, options.seconds, jobs)
    print(machine.caption(document["machine"]))
    print(table(document))
    print(f"{document['seconds']} s; written: {options.results}")
    return int(any(record["result"] not in (PASSED, SKIPPED) for record in document["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
