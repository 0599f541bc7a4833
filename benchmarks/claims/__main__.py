"""Train every variant with every seed, measure the paper's claims, and draw them.

    python -m benchmarks.claims                    all runs: about four hours of two cores
    python -m benchmarks.claims --seeds 0 --variants DINO "no denoising"
    python -m benchmarks.claims --jobs 0           no run: tables and figures of what is finished
    python -m benchmarks.claims --publish          also write claims.json and figures to benchmarks/results/MACHINE

Rerun the command to resume: finished runs are read from the output folder, with --publish also from claims.json, and
a stopped run continues at its last epoch.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.claims import FILE_NAME, runs_table, table
from benchmarks.claims.figures import draw_all
from benchmarks.claims.groups import groups_table, measure_groups
from benchmarks.claims.recipe import SEEDS, VARIANTS, prepare
from benchmarks.claims.run import finished, output_of, result_of
from benchmarks.measure import machine
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text

Job = tuple[str, int]


def jobs_of(variants: list[str], seeds: list[int]) -> list[Job]:
    """Return the runs in their order: by turn, then seed, so that an ended command leaves balanced results."""
    jobs = [(name, seed) for name in variants for seed in seeds]
    return sorted(jobs, key=lambda job: (VARIANTS[job[0]].turn, job[1]))


def command_of(job: Job, folder: Path) -> list[str]:
    """Return the command that trains and measures one variant with one seed."""
    return [sys.executable, "-m", "benchmarks.claims.run", job[0], str(job[1]), str(folder.resolve())]


@contextlib.contextmanager
def children() -> Iterator[dict[subprocess.Popen[bytes], Job]]:
    """Yield the running processes; end them, which makes each save a checkpoint, however the block ends."""
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


def run_all(jobs: list[Job], at_once: int, folder: Path) -> Iterator[tuple[Job, int]]:
    """Run the jobs, some at once, one thread each; yield each with its exit code when it has ended."""
    todo = iter(jobs)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with children() as running:
        while True:
            while len(running) < at_once and (job := next(todo, None)) is not None:
                output = output_of(folder, *job)
                output.mkdir(parents=True, exist_ok=True)
                with (output / "output.txt").open("ab") as text:
                    # Not in the terminal's process group: Ctrl-C reaches it through this process, once.
                    process = subprocess.Popen[bytes](
                        command_of(job, folder),
                        cwd=machine.ROOT,
                        env=environment,
                        stdout=text,
                        stderr=text,
                        start_new_session=True,
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
    parser.add_argument("--publish", action="store_true", help="write the results to benchmarks/results/MACHINE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine.describe("cpu")
    place = RESULTS / (machine.slug(facts) if options.publish else LATEST)
    before = read_runs(place / FILE_NAME) if options.publish else []
    have = {(row["variant"], row["seed"]) for row in before + finished(options.output)}
    jobs = [job for job in jobs_of(options.variants, options.seeds) if job not in have]
    failed = train_missing(jobs, options.jobs, options.output)
    report(facts, options.output, before, place)
    return 1 if failed else 0


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a results file; none if there is no file."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


def train_missing(todo: list[Job], at_once: int, folder: Path) -> bool:
    """Run the jobs; return whether one failed."""
    if not todo or at_once == 0:
        return False
    print(f"{len(todo)} runs; making data and backbone", flush=True)
    prepare(folder)
    failed, started = False, time.monotonic()
    for done, ((variant, seed), code) in enumerate(run_all(todo, at_once, folder), 1):
        failed |= code != 0
        where = output_of(folder, variant, seed)
        state = f"exit code {code}, see {where / 'output.txt'}"
        if code == 0:
            row = result_of(where)
            state = f"AP {100 * row['history'][-1]['AP']:.1f} in {row['seconds']} s"
        left = (time.monotonic() - started) / done * (len(todo) - done)
        print(f"[{done}/{len(todo)}] {variant}, seed {seed}: {state}; {left / 60:.0f} min left", flush=True)
    return failed


def report(facts: dict[str, Any], folder: Path, before: list[dict[str, Any]], place: Path) -> None:
    """Print the tables of the finished runs, and write them and the figures to `place`."""
    by_job = {(row["variant"], row["seed"]): row for row in before + finished(folder)}
    if not by_job:
        raise SystemExit(f"--jobs 0: {folder} has no finished run. Leave --jobs out to train.")
    runs = [by_job[job] for name in VARIANTS for job in sorted(by_job) if job[0] == name]
    document = {"machine": facts, "runs": runs, "groups": measure_groups(folder)}
    write_json(place / FILE_NAME, document)
    for each in (runs_table, groups_table, table):
        print(f"\n{as_text(each(document))}")
    print("\n" + "\n".join(str(path) for path in (place / FILE_NAME, *draw_all(document, place))))


if __name__ == "__main__":
    sys.exit(main())
