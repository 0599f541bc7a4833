"""Train every variant with every seed, measure the paper's claims, and draw them.

    python -m benchmarks.claims                    all runs: about three hours of two cores
    python -m benchmarks.claims --seeds 0 --variants DINO "no denoising"
    python -m benchmarks.claims --jobs 0           no run: tables and figures of what is finished
    python -m benchmarks.claims --publish          also write benchmarks/results/MACHINE/claims.json and figures

Rerun the command to resume: finished runs are read from the output folder, a stopped one continues at its last epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.claims.recipe import SEEDS, VARIANTS, prepare
from benchmarks.claims.run import RESULT, output_of
from benchmarks.measure.machine import ROOT

Job = tuple[str, int]


def jobs_of(variants: list[str], seeds: list[int]) -> list[Job]:
    """Return the runs in their order: by turn, then seed, so that an ended command leaves balanced results."""
    jobs = [(name, seed) for name in variants for seed in seeds]
    return sorted(jobs, key=lambda job: (VARIANTS[job[0]].turn, job[1]))


@contextlib.contextmanager
def children() -> Iterator[dict[subprocess.Popen[bytes], Job]]:
    """Yield the running processes, and end them, which makes each save a checkpoint, however the block ends."""
    running: dict[subprocess.Popen[bytes], Job] = {}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield running
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def train_all(jobs: list[Job], at_once: int, folder: Path) -> Iterator[tuple[Job, int]]:
    """Run the jobs, some at once, one thread each; yield each with its exit code when it has ended."""
    todo = iter(jobs)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with children() as running:
        while True:
            while len(running) < at_once and (job := next(todo, None)) is not None:
                output = output_of(folder, *job)
                output.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, "-m", "benchmarks.claims.run", job[0], str(job[1]), str(folder.resolve())]
                with (output / "output.txt").open("ab") as text:
                    # Not in the terminal's process group: Ctrl-C reaches it through this process, once.
                    process = subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=text, stderr=text, start_new_session=True
                    )
                running[process] = job
            if not running:
                return
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                yield running.pop(process), process.returncode
            if not ended:
                time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one training each (0 1 2 3 4)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, by default one per core")
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), help="folder of the runs (runs/claims)")
    parser.add_argument("--publish", action="store_true", help="write the results under benchmarks/results/MACHINE")
    options = parser.parse_args()
    jobs = jobs_of(options.variants, options.seeds)
    todo = [job for job in jobs if not (output_of(options.output, *job) / RESULT).exists()] if options.jobs > 0 else []
    if todo:
        print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished; preparing data and backbone", flush=True)
        prepare(options.output)
    failed, started, number = [], time.monotonic(), count(len(jobs) - len(todo) + 1)
    for (variant, seed), code in train_all(todo, options.jobs, options.output):
        where = output_of(options.output, variant, seed)
        state = f"exit code {code}, see {where / 'output.txt'}" if code else _summary(where)
        done = next(number) - (len(jobs) - len(todo))
        left = (time.monotonic() - started) / done * (len(todo) - done)
        print(f"[{done}/{len(todo)}] {variant}, seed {seed}: {state}; {left / 60:.0f} min left", flush=True)
        failed += [where] if code else []
    return 1 if failed else 0


def _summary(where: Path) -> str:
    row: dict[str, Any] = json.loads((where / RESULT).read_text())
    return f"AP {100 * row['history'][-1]['AP']:.1f} in {row['seconds']} s"


if __name__ == "__main__":
    sys.exit(main())
