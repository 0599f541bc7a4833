"""Make tables from results: the summary of a run, and the tables in every README.md.

    python -m benchmarks.measure.report            rewrite the tables between the markers
    python -m benchmarks.measure.report --check    exit with 1 if one is stale

A marker is `<!-- results:NAME -->` or `<!-- results:NAME FOLDER -->`, and `<!-- /results -->` ends its table. NAME is
one of TABLES; FOLDER is one of benchmarks/results, and may be left out while there is only one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, groupby
from typing import Any

from benchmarks.claims import claims, groups
from benchmarks.detector import export, memory, onnx, precision, successors, training_step
from benchmarks.gpu import table as gpu
from benchmarks.matching.peers import BASELINES, LISTS
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER
from benchmarks.measure.machine import ROOT, caption
from benchmarks.measure.results import FILE_NAME, RESULTS, published
from benchmarks.measure.tables import Table, as_markdown, as_text, milliseconds, ratio
from benchmarks.sass import counts
from benchmarks.tutorial import steps as tutorial

Document = dict[str, Any]
MARKER = re.compile(r"(<!-- results:(\w+)(?: ([\w.-]+))? -->\n).*?(<!-- /results -->)", re.DOTALL)
FORWARD, BOTH = "forward", "forward+backward"
MATCHING_JOBS = {COST: "cost", ASSIGNMENT: "assignment", MATCHER: "matcher"}
# In place of a table that published results are too old for.
GPU = "gpu.json"  # of the GPU suite
NOT_MEASURED = "Not measured yet: these results are older than this table."


def lines_of(document: Document, op: str | None = None) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Yield workload, op, implementation, dtype and rows by pass, in the order of measurement."""

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["workload"], row["op"]

    for (workload, name), group in groupby(document["speed"], key):
        rows = [row for row in group if op in (None, name)]
        for implementation, dtype in dict.fromkeys((row["implementation"], row["dtype"]) for row in rows):
            passes = {
                row["pass"]: row for row in rows if (row["implementation"], row["dtype"]) == (implementation, dtype)
            }
            yield workload, name, implementation, dtype, passes


def _memory(document: Document, *key: str) -> str:
    for row in document["memory"]:
        if (row["workload"], row["op"], row["implementation"], row["dtype"]) == key:
            return f"{row['peak_mib']:.0f} ({row['least_mib']:.0f})"
    return "-"


def full_table(document: Document, op: str | None = None) -> Table:
    """Make the table of every contestant of every workload."""
    header = ["workload", "by", "forward ms", "x ref", "x peer", "fwd+bwd ms", "x ref", "x peer", "peak MiB (least)"]
    table = [header if op else [header[0], "op", *header[1:]]]
    for workload, name, implementation, dtype, passes in lines_of(document, op):
        cells = [
            workload,
            f"{implementation} {dtype}" + (" (!)" if any("inaccurate" in r for r in passes.values()) else ""),
        ]
        for which in (FORWARD, BOTH):
            row = passes.get(which)
            ratios = [ratio(row["speedup"]), ratio(row.get("speedup_over_best_peer"))] if row else []
            cells += [milliseconds(row), *ratios] if row else ["-"] * 3
        cells.append(_memory(document, workload, name, implementation, dtype))
        table.append(cells if op else [cells[0], name, *cells[1:]])
    return table


def speed_table(document: Document) -> Table:
    """Make the table of the fused op in float32: the reference, our fastest kernel, and their ratio."""
    ours = ["ours ms", "ratio"]
    table = [["workload", "forward: reference ms", *ours, "forward + backward: reference ms", *ours]]
    rows = [row for row in document["speed"] if row["op"] == "fused_ms_deform_attn" and row["dtype"] == "fp32"]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cells = [workload]
        for which in (FORWARD, BOTH):
            entries = [row for row in rows if row["workload"] == workload and row["pass"] == which and row["ours"]]
            reference = next(row for row in entries if row["implementation"] == "reference")
            kernels = [row for row in entries if row is not reference]
            if not kernels:
                cells += [milliseconds(reference), "-", "-"]
                continue
            best = min(kernels, key=lambda row: row["median_ms"])
            cells += [milliseconds(reference), milliseconds(best), ratio(best["speedup"])]
        table.append(cells)
    return table


def whole_model_table(document: Document) -> Table:
    """Make the table of a transformers model as it is, and with its attention replaced by ours."""
    table = [["model", "pass", "transformers ms", "with dino_kernels ms", "ratio"]]
    for row in document["whole_model"]:
        before, after = milliseconds(row["before"]), milliseconds(row["after"])
        table.append([row["model"], row["pass"], before, after, ratio(row["speedup"])])
    return table


def detector_table(document: Document) -> Table:
    """Make the table of our DINO's inference by part, with the fastest kernel and with the reference."""
    table = [["part", "reference ms", "with the kernel ms", "share", "ratio"]]
    for row in document["detector"]:
        before, after = row["parts_ms"]["reference"], row["parts_ms"]["kernel"]
        whole = sum(after.values())
        for part, ms in after.items():
            table.append(
                [part, f"{before[part]:.0f}", f"{ms:.0f}", f"{100 * ms / whole:.0f} %", f"{before[part] / ms:.1f}x"]
            )
        whole_row = [milliseconds(row["reference"]), milliseconds(row["kernel"]), "100 %", ratio(row["speedup"])]
        table.append([f"whole: {row['model']}", *whole_row])
    return table


def matching_table(document: Document) -> Table:
    """Make the table of each job by what DINO does and by our fastest kernel, and their ratio."""
    columns = [[f"{job}: DINO ms", "ours ms", "ratio"] for job in MATCHING_JOBS.values()]
    table = [["workload", *chain.from_iterable(columns)]]
    rows = document.get("matching", [])
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cells = [workload]
        for op in MATCHING_JOBS:
            mine = [row for row in rows if (row["workload"], row["op"]) == (workload, op)]
            baseline = [row for row in mine if row["implementation"] == BASELINES[op]]
            kernels = [row for row in mine if row["ours"] and not row["implementation"].startswith("reference")]
            if op == MATCHER:  # from DETR's list of targets to DETR's lists of pairs, as DINO's own
                kernels = [row for row in kernels if row["implementation"].endswith(LISTS)]
            best = min(kernels, key=lambda row: row["median_ms"], default=None)
            cells += [milliseconds(baseline[0]) if baseline else "-"]
            cells += [milliseconds(best), ratio(best.get("speedup"))] if best else ["-", "-"]
        table.append(cells)
    return table


def matching_op_table(document: Document, op: str) -> Table:
    """Make the table of every contestant of one job."""
    table = [["workload", "by", "ms", "x ref", "x peer"]]
    for row in (row for row in document.get("matching", []) if row["op"] == op):
        by = row["implementation"] + (" (!)" if "inaccurate" in row else "")
        ratios = [ratio(row.get(name)) for name in ("speedup", "speedup_over_best_peer")]
        table.append([row["workload"], by, milliseconds(row), *ratios])
    return table


# Rows of the front page: workload, baseline, the table that has them, how that table's row begins (the last such row
# counts), and the places of the baseline's time, ours, and their ratio in it.
FRONT: tuple[tuple[str, str, Callable[[Document], Table], str, tuple[int, int, int]], ...] = (
    ("attention, encoder, 800x1333", "`grid_sample`", speed_table, "encoder_800x1333_b1", (4, 5, 6)),
    ("attention, decoder, 900 queries", "`grid_sample`", speed_table, "decoder_q900_b1", (4, 5, 6)),
    ("matching, COCO's numbers of boxes, batch of 2", "DINO's matcher", matching_table, "coco_middle_b2", (7, 8, 9)),
    ("matching, COCO's numbers of boxes, batch of 16", "DINO's matcher", matching_table, "coco_middle_b16", (7, 8, 9)),
    ("DeformableDetr, forward + backward, 320x480", "transformers", whole_model_table, "DeformableDetr", (2, 3, 4)),
    ("dino_4scale_r50, inference, 800x1333", "`grid_sample`", detector_table, "whole", (1, 2, 4)),
)


def front_table(document: Document) -> Table:
    """Return the front page's table: one row for each of FRONT that was measured."""
    table = [["workload", "baseline", "baseline ms", "ours ms", "ratio"]]
    for workload, baseline, source, start, places in FRONT:
        rows = [row for row in source(document)[1:] if row[0].startswith(start)]
        if rows:
            table.append([workload, baseline, *(rows[-1][place] for place in places)])
    return table


# By name: the file of results, and the function that makes the table.
TABLES: dict[str, tuple[str, Callable[[Document], Table]]] = {
    "front": (FILE_NAME, front_table),
    "whole_model": (FILE_NAME, whole_model_table),
    "ms_deform_attn": (FILE_NAME, lambda document: full_table(document, "ms_deform_attn")),
    "fused_ms_deform_attn": (FILE_NAME, lambda document: full_table(document, "fused_ms_deform_attn")),
    "speed": (FILE_NAME, speed_table),
    "detector": (FILE_NAME, detector_table),
    "matching": (FILE_NAME, matching_table),
    **{op: (FILE_NAME, partial(matching_op_table, op=op)) for op in MATCHING_JOBS},
    "precision": (precision.FILE_NAME, precision.table),
    "training_step": (training_step.FILE_NAME, training_step.table),
    "export": (export.FILE_NAME, export.table),
    "successors": (successors.FILE_NAME, successors.table),
    "claims": (claims.FILE_NAME, claims.table),
    **{f"claims_{topic}": (claims.FILE_NAME, partial(claims.table, topics=[topic])) for topic in claims.CLAIMS},
    "claims_runs": (claims.FILE_NAME, claims.runs_table),
    "claims_groups": (claims.FILE_NAME, groups.groups_table),
    "step_memory": (memory.FILE_NAME, memory.table),
    "onnx": (onnx.FILE_NAME, onnx.table),
    "tutorial_attention": (tutorial.FILE_NAME, tutorial.attention_table),
    "tutorial_matching": (tutorial.FILE_NAME, tutorial.matching_table),
    "tutorial_attention_counts": (tutorial.FILE_NAME, partial(tutorial.counted_table, chapter="attention")),
    "tutorial_matching_counts": (tutorial.FILE_NAME, partial(tutorial.counted_table, chapter="matching")),
    "counts": (counts.STORED.name, counts.table),
    "gpu_attention": (GPU, gpu.attention_lines),
    "gpu_matching": (GPU, gpu.matching_lines),
    "gpu_counters": (GPU, gpu.counter_lines),
}


def summary(document: Document) -> str:
    """Make what a run prints last."""
    parts = [caption(document["machine"])]
    if document["speed"]:
        parts.append(as_text(full_table(document)))
        parts.append(
            "x ref: times faster than the reference at float32 (float64 for fp64); x peer: than the fastest peer at "
            "that dtype, or at float32 where none ran.\n"
            "peak: memory over inputs during forward+backward; least: output and gradients alone."
        )
    if document["whole_model"]:
        parts.append(as_text(whole_model_table(document)))
    if document["detector"]:
        parts.append(as_text(detector_table(document)))
    for op in MATCHING_JOBS:
        table = matching_op_table(document, op)
        if len(table) > 1:
            parts.append(f"{op}; x ref: times faster than {BASELINES[op]}, as DINO does it\n{as_text(table)}")
    if any("inaccurate" in row for row in document["speed"] + document["matching"]):
        parts.append("(!) misses the tolerance that this package's kernels must keep; the JSON has the errors.")
    reasons: dict[str, list[str]] = {}
    for contestant, reason in document["not_run"].items():
        reasons.setdefault(reason, []).append(contestant)
    if reasons:
        parts.append("\n".join(f"not run: {', '.join(names)}: {reason}" for reason, names in reasons.items()))
    parts += [f"WRONG, not timed: {message}" for message in dict.fromkeys(document["wrong"])]
    return "\n\n".join(parts)


def update(text: str, load: Callable[[str | None, str], Document]) -> str:
    """Rewrite the table after every marker in `text`."""

    def replace(match: re.Match[str]) -> str:
        start, name, folder, end = match.groups()
        if name not in TABLES:
            raise SystemExit(f"report: no table {name!r}, which a marker names. Use one of {', '.join(TABLES)}.")
        file, table = TABLES[name]
        document = load(folder, file)
        rows = table(document)
        shown = as_markdown(rows) if len(rows) > 1 else NOT_MEASURED
        origin = caption(document["machine"]) if "machine" in document else counts.caption(document)
        return f"{start}\n{shown}\n\n{origin}\n\n{end}"

    return MARKER.sub(replace, text)


def load(folder: str | None, file: str) -> Document:
    if (RESULTS / file).exists():  # of no machine
        return json.loads((RESULTS / file).read_text())
    if folder is None:
        files = published(file)
        if len(files) != 1:
            raise SystemExit(f"report: {len(files)} folders have {file}. Name one of them in the marker.")
        return json.loads(files[0].read_text())
    return json.loads((RESULTS / folder / file).read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description="Rewrite the READMEs' tables from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is stale")
    check = parser.parse_args().check
    stale = []
    for path in sorted(ROOT.glob("*.md")) + sorted(
        p for part in ("dino", "dino_kernels", "benchmarks") for p in (ROOT / part).rglob("*.md")
    ):
        before = path.read_text()
        after = update(before, load)
        if before != after:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after)
    if stale:
        print(("stale: " if check else "rewritten: ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
