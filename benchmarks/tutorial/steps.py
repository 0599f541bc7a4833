"""Check and time the steps of the tutorial, all of them in turns, on one thread; count what they do.

    python -m benchmarks.tutorial                two minutes; prints tables, writes benchmarks/results/latest/
    python -m benchmarks.tutorial --publish      writes benchmarks/results/MACHINE/tutorial.json

On a CPU, seconds are those of this process (`time.process_time`), so that other processes of the machine lengthen them
little; a step runs on one thread, so these are its seconds. Every step is compared with the definition first: a wrong
one is an error. `--device cuda` times the steps that can run on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measure import machine
from benchmarks.measure.race import Call, Timing, race, stopwatch_for
from benchmarks.measure.results import LATEST, RESULTS, spread, times, write_json
from benchmarks.measure.tables import Table, as_text, milliseconds, ratio
from dino_kernels.testing import Case
from dino_kernels.tutorial.attention import run as attention
from dino_kernels.tutorial.attention.problem import DECODER, ENCODER, LARGE_ENCODER, Problem, definition, error, problem
from dino_kernels.tutorial.counting import count, size
from dino_kernels.tutorial.matching import run as matching
from dino_kernels.tutorial.matching.problem import Step as Given
from dino_kernels.tutorial.matching.problem import step, violation

FILE_NAME = "tutorial.json"
SECONDS, LEAST_LAPS = 8.0, 5  # of a race
# Of the largest number. Positions are float32 in all steps, which costs 1e-5 at the borders of pixels.
ALLOWED = {torch.float32: 3e-5, torch.bfloat16: 1e-2}
GRID_SAMPLE = "grid_sample"
FEW = f", {attention.LOOP_QUERIES} queries"
PASSES = {"forward": False, "forward+backward": True}
ATTENTION = (ENCODER, LARGE_ENCODER, DECODER)
TOO_LARGE = ("2 vectors", "3 fused softmax")  # at 800x1333 the gathered rows take 1.5 GB, and the backward three times


def process_time(call: Call) -> float:
    """Return this process's seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def contestants(case: Case, device: str) -> dict[str, attention.Step]:
    """Return the steps that are timed on a case, the definition first."""
    everyone = {s.label: s for s in attention.STEPS.values() if device in s.devices}
    left_out = {"1 loop", *(TOO_LARGE if case is LARGE_ENCODER and device == "cpu" else ())}
    return {label: each for label, each in everyone.items() if label not in left_out}


def attention_rows(case: Case, device: str) -> list[dict[str, Any]]:
    """Check, time and count every step on a case."""
    whole = {dtype: problem(case, dtype, device) for dtype in ALLOWED}
    steps = contestants(case, device)
    rows = []
    if device == "cpu" and case is not LARGE_ENCODER:
        few = {dtype: given.first(attention.LOOP_QUERIES) for dtype, given in whole.items()}
        racers = {label: attention.STEPS[label] for label in ("1 loop", "2 vectors")}
        rows += compete(f"{case.name}{FEW}", racers, few, device)
    return rows + compete(case.name, steps, whole, device)


def compete(
    workload: str, steps: dict[str, attention.Step], given: dict[torch.dtype, Problem], device: str
) -> list[dict[str, Any]]:
    """Return a row for each step and pass."""
    stopwatch = process_time if device == "cpu" else stopwatch_for(device)
    facts: dict[str, dict[str, Any]] = {}
    for label, each in steps.items():
        exact = definition(given[each.dtype])
        with torch.no_grad():
            wrong = error(each.attend(given[each.dtype]), exact)
        assert wrong <= ALLOWED[each.dtype], f"step {label} on {workload}: error {wrong}"
        leaves = given[each.dtype].requires_grad(reference_points=False)
        counts = count(partial(each.attend, leaves), leaves.inputs)
        facts[label] = {
            "error": wrong,
            "operations": counts.operations,
            "allocated": counts.allocated,
            "saved": counts.saved if each.backward else None,
            "counted": each.why(given[each.dtype]),
        }
    rows = []
    for name, backward in PASSES.items():
        racers = {label: each for label, each in steps.items() if each.backward or not backward}
        if backward and "1 loop" in steps:
            continue
        grad_output = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(device)
        calls = {x: attention.ready(s, given[s.dtype], backward, grad_output) for x, s in racers.items()}
        timings = race(calls, stopwatch, SECONDS, LEAST_LAPS)
        for label, each in racers.items():
            before = each.predecessor(backward)
            about = {"workload": workload, "device": device, "pass": name, "step": label}
            rows.append(about | facts[label] | compared(timings, label, before.label if before else None, GRID_SAMPLE))
    return rows


def compared(timings: dict[str, Timing], label: str, before: str | None, first: str) -> dict[str, Any]:
    """Return a step's times, and its ratios to the step before and to the first, if those ran."""
    row = times(timings[label])
    for name, other in (("over_before", before), ("over_first", first)):
        if other in timings and other != label:
            row[name] = spread(timings[label].speedup_over(timings[other]))
    return row


def matching_rows(given: Given, workload: str) -> list[dict[str, Any]]:
    """Check and time every step of matching on one training step."""
    rows, facts = [], {}
    for label, each in matching.STEPS.items():
        found = each.match(given)
        excess = matching.excess(given, found)
        assert abs(excess) <= matching.ALLOWED, f"step {label} on {workload}: costs {excess} more than SciPy's"
        miss = None if found.target_duals is None else violation(given, found)
        facts[label] = {"excess": excess, "duals_miss": miss, "counted": each.why(given)}
    timings = race(
        {x: partial(s.match, given) for x, s in matching.STEPS.items()}, process_time, SECONDS, 2 * LEAST_LAPS
    )
    for label, each in matching.STEPS.items():
        first = "1 SciPy" if each.before else label  # SciPy gets the costs
        times_of = compared(timings, label, each.before, first)
        rows.append({"workload": workload, "step": label} | facts[label] | times_of)
    return rows


def attention_table(document: dict[str, Any]) -> Table:
    """Make a row per workload and step: times, ratios, error and counts."""
    header = ["workload", "step", "forward ms", "x before", "x grid_sample", "fwd+bwd ms", "x before", "x grid_sample"]
    table = [[*header, "error", "operations", "allocated", "kept for backward"]]
    for workload, label in dict.fromkeys((row["workload"], row["step"]) for row in document.get("attention", [])):
        mine = [r for r in document["attention"] if (r["workload"], r["step"]) == (workload, label)]
        by_pass = {row["pass"]: row for row in mine}
        cells = [workload, label]
        for name in PASSES:
            row = by_pass.get(name)
            ratios = [fine(row.get(key)) for key in ("over_before", "over_first")] if row else []
            cells += [milliseconds(row), *ratios] if row else ["-"] * 3
        last = by_pass.get("forward+backward", by_pass["forward"])
        kept = "-" if last["saved"] is None else size(last["saved"])
        counts = [f"{last['operations']:,}", size(last["allocated"]), kept]
        table.append([*cells, f"{last['error']:.0e}", *counts])
    return table


def fine(given: dict[str, Any] | None) -> str:
    """Return a ratio as text, with two digits below 10: steps may differ by a few per cent."""
    return ratio(given) if given is None or given["median"] >= 10 else f"{given['median']:.2f}x"


def matching_table(document: dict[str, Any]) -> Table:
    """Make a row per workload and step: times, ratios and the proof."""
    table = [["workload", "step", "ms", "x before", "x SciPy", "duals miss by"]]
    for row in document.get("matching", []):
        miss = "-" if row["duals_miss"] is None else f"{row['duals_miss']:.0e}" if row["duals_miss"] else "0"
        ratios = [fine(row.get(name)) for name in ("over_before", "over_first")]
        table.append([row["workload"], row["step"], milliseconds(row), *ratios, miss])
    return table


def counted_table(document: dict[str, Any], chapter: str) -> Table:
    """Make a row per step and workload: the step's own count, each text once."""
    lines: dict[tuple[str, str, str], str] = {}
    for row in document.get(chapter, []):
        if row["step"][0] == "1" or not row["workload"].endswith(FEW):  # a few queries are of interest in step 1 alone
            lines.setdefault((row["step"][0], row["workload"], row["counted"]), row["step"])
    rows = [[step, workload, text] for (_, workload, text), step in lines.items()]
    return [["step", "workload", "counted"], *sorted(rows, key=lambda row: (row[0][0].isdigit(), row[0]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of attention; matching is for the CPU"
    )
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(machine.NO_GPU)
    torch.set_num_threads(1)
    facts = machine.describe(options.device)
    document: dict[str, Any] = {"machine": facts, "attention": [], "matching": []}
    path = RESULTS / (machine.slug(facts) if options.publish else LATEST) / FILE_NAME
    jobs: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        *(("attention", partial(attention_rows, case, options.device)) for case in ATTENTION),
        *(("matching", partial(matching_rows, step(case), case.name)) for case in matching.CASES),
    ]
    for chapter, measure in jobs:
        if chapter == "attention" or options.device == "cpu":
            document[chapter] += measure()
            write_json(path, document)
    print(machine.caption(facts))
    for table in (attention_table(document), matching_table(document)):
        print(f"\n{as_text(table)}")
    for chapter in ("attention", "matching"):
        print(f"\n{as_text(counted_table(document, chapter))}")
    print(f"\n{path}")
