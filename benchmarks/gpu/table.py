"""Make the GPU suite's summary: times, accuracy, memory, failures, and the project's targets beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.matching import JOBS, part_name
from benchmarks.gpu.timing import CALL, GRAPH, KERNELS
from benchmarks.matching.peers import BASELINES, LISTS
from benchmarks.matching.workloads import ASSIGNMENT, MATCHER
from benchmarks.measure.machine import caption
from benchmarks.measure.tables import Table, as_text, milliseconds

Document = dict[str, Any]
Row = dict[str, Any]
LONGEST = 9600  # characters: a log's end of 10,000 must hold the whole
# Columns of the tables, of attention and of matching.
ORDER = (
    *("cuda", "triton", "cpu", "deformops-fp32acc", "deformops-cuda", "deformops"),
    *("original", "mmcv", "transformers", "torch.compile", "reference"),
)
MATCHING_ORDER = (
    *("cuda", "triton", "cuda-lists", "triton-lists", "cpu", "cpu-lists"),
    *("torch-linear-assignment", "tla-unchecked", "lapx-lapjvh", "scipy-float64", "scipy"),
    *("transformers", "dino", "reference"),
)
SHORT_NAMES = {
    "torch.compile": "compile",
    "deformops-fp32acc": "do-fp32acc",
    "deformops-cuda": "do-cuda",
    "torch-linear-assignment": "tla",
    "tla-unchecked": "tla-kernel",
    "transformers": "hf",
    "reference": "ref",
}
# Those that add up the gradient of value in float32.
DEFORMOPS_IN_FP32 = ("deformops-fp32acc", "deformops-cuda")
RED_PART, COUNTERS_PART = "rate of L2 additions", "Nsight Compute"
FORWARD = "forward"
PASS_NAMES = {FORWARD: "fwd", "forward+backward": "fwd+bwd"}
ENCODER, ENCODER_FP32 = "encoder B=2 fused_ms_deform_attn bf16", "encoder B=2 fused_ms_deform_attn fp32"
DECODER = "decoder Q=1100 fused_ms_deform_attn bf16"
# Twice the time that an H100's L1 caches need for the gather of one image in bf16 [calc].
L1_BOUND_MS = 0.025
MATCHING = "7x16 T=20"


def rows_of(document: Document, part: str, kind: str, **fields: Any) -> list[Row]:
    rows = document["parts"].get(part, {}).get("rows", [])
    return [r for r in rows if r["kind"] == kind and all(r[name] == value for name, value in fields.items())]


def fastest(rows: list[Row]) -> Row | None:
    return min(rows, key=lambda row: row["median_ms"], default=None)


def our_fastest(rows: list[Row]) -> Row | None:
    return fastest([row for row in rows if row["ours"] and row["implementation"] != "reference"])


def _verdict(name: str, at: str, target: float | None, call: float | None, graph: float | None = None) -> Row:
    """Compare one target, of which `at` is "least" or "most"."""
    values = {"per call": call, "in a graph": graph}
    known = {mode: value for mode, value in values.items() if value is not None}
    if not known:
        verdict = "not measured"
    elif target is None:
        verdict = "no target"
    else:
        good = [mode for mode, value in known.items() if (value >= target if at == "least" else value <= target)]
        verdict = "met" if len(good) == len(known) else f"met {good[0]} only" if good else "NOT MET"
    rounded = {mode: None if value is None else round(value, 3) for mode, value in values.items()}
    return {"target": name, "at": at, "required": target, **rounded, "verdict": verdict}


def _ratio(document: Document, part: str, which: str, mode: str, against: tuple[str, ...]) -> float | None:
    """Return how many times faster our fastest kernel is than the fastest of some peers, or of all."""
    rows = rows_of(document, part, "speed", **{"pass": which, "mode": mode})
    peers = [r for r in rows if not r["ours"] and (not against or r["implementation"] in against)]
    ours, peer = our_fastest(rows), fastest(peers)
    return peer["median_ms"] / ours["median_ms"] if ours and peer else None


def targets(document: Document) -> list[Row]:
    """Compare every target of the project with what was measured per call and, if measured, in a graph."""

    def faster(part: str, which: str, peer: str, required: float | None, *against: str) -> Row:
        name = f"{part.replace(' fused_ms_deform_attn', '')} {PASS_NAMES[which]}: x {peer}"
        # A decoder's target is for graphs only: per call, launches hide its kernel.
        call = None if part == DECODER else _ratio(document, part, which, CALL, against)
        return _verdict(name, "least", required, call, _ratio(document, part, which, GRAPH, against))

    def ours(part: str, kind: str, **fields: Any) -> list[Row]:
        rows = rows_of(document, part, kind, ours=True, **fields)
        return [row for row in rows if row["implementation"] != "reference"]

    def images_ms(mode: str) -> float | None:
        best = fastest(ours(ENCODER, "speed", **{"pass": "forward", "mode": mode}))
        return best["median_ms"] / 2 / L1_BOUND_MS if best else None

    found = []
    for which in PASS_NAMES:
        found += [
            faster(ENCODER, which, "deformops in fp32", 1.5, *DEFORMOPS_IN_FP32),
            faster(ENCODER, which, "deformops", None, "deformops"),
            faster(ENCODER, which, "original", 4.0, "original"),
            faster(ENCODER_FP32, which, "original", 2.5, "original"),
            faster(DECODER, which, "best peer", 1.3),
        ]
    megabytes = [row["megabytes"] for row in ours("saved for backward", "saved", reference_levels=1)]
    accuracy = ours("accuracy of grad_value", "accuracy")
    errors = [max(row["rms_roundings"], row["max_roundings"]) for row in accuracy]
    slower = ours("deterministic algorithms", "deterministic", mode="deterministic")
    costs = [row["ratio"] for row in sorted(slower, key=lambda row: ORDER.index(row["implementation"]))]
    bound = "encoder B=2 bf16 fwd an image: x L1 bound of 25 us"
    saved = "saved for backward, encoder B=1 bf16: MB"
    rounding = "grad_value at the coarsest level, bf16: roundings"
    deterministic = "deterministic over default, encoder B=2 bf16 fwd+bwd"
    return [
        *found,
        _verdict(bound, "most", 2.0, images_ms(CALL), images_ms(GRAPH)),
        _verdict(saved, "most", 29.0, min(megabytes, default=None)),
        _verdict(rounding, "most", 2.0, max(errors, default=None)),
        *matching_targets(document),
        _verdict(deterministic, "most", None, costs[0] if costs else None),
    ]


def matching_targets(document: Document) -> list[Row]:
    def ours(job: str, mode: str, step: str) -> Row | None:
        rows = rows_of(document, part_name(step, job), "matching", mode=mode)
        return our_fastest([row for row in rows if not row["implementation"].endswith(LISTS)])

    def ratio(job: str, mode: str, peer: str, step: str = MATCHING) -> float | None:
        rows = rows_of(document, part_name(step, job), "matching", mode=mode, implementation=peer)
        mine = ours(job, mode, step)
        return rows[0]["median_ms"] / mine["median_ms"] if rows and mine else None

    found = []
    for kind, most in (("", 40.0), (" early", None), (" collapsed", None)):
        both = ours(MATCHER, GRAPH, MATCHING + kind)
        name = f"matching 7x16 of 900x20,{kind}{',' if kind else ''} cost + assignment: us"
        found.append(_verdict(name, "most", most, None, 1e3 * both["median_ms"] if both else None))
    launches = rows_of(document, part_name(MATCHING, MATCHER), "launches")
    fewest = min((row["launches"] for row in launches if not row["implementation"].endswith(LISTS)), default=None)
    # In a graph its kernel alone, without the checks that wait for the GPU.
    per_call, in_graph = ratio(ASSIGNMENT, CALL, "torch-linear-assignment"), ratio(ASSIGNMENT, GRAPH, "tla-unchecked")
    found.append(_verdict("matching 7x16 of 900x20, cost + assignment: launches", "most", 2.0, fewest))
    found.append(_verdict("assignment 7x16 of 900x20: x torch-linear-assignment", "least", 20.0, per_call, in_graph))
    for step in (MATCHING, "7x16 COCO"):
        eager = ratio(MATCHER, CALL, BASELINES[MATCHER], step)
        found.append(_verdict(f"matching {step}: x eager GPU cost + SciPy", "least", 100.0, eager))
    return found


def matching_table(document: Document) -> Table:
    """Make the table of matching: milliseconds per call / in a graph, by implementation."""
    parts = [(step, job, part_name(step, job)) for step, job, _ in JOBS]
    measured = {row["implementation"] for *_, part in parts for row in rows_of(document, part, "matching")}
    columns = [name for name in MATCHING_ORDER if name in measured]
    table = [["workload", "op", *(SHORT_NAMES.get(name, name) for name in columns)]]
    for step, job, part in parts:
        rows = rows_of(document, part, "matching")
        if rows:
            table.append([step, job, *(_times(rows, name) for name in columns)])
    return table


def target_table(document: Document) -> Table:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    table = [["part", "required", "per call", "in a graph", "verdict"]]
    for row in document["targets"]:
        sign = {"least": ">=", "most": "<="}[row["at"]]
        required = "-" if row["required"] is None else f"{sign} {row['required']:g}"
        table.append([row["target"], required, cell(row["per call"]), cell(row["in a graph"]), row["verdict"]])
    return table


def speed_table(document: Document, parts: list[str]) -> Table:
    """Make the table of milliseconds per call / in a graph, by implementation, with peak MiB of forward+backward."""
    measured = {row["implementation"] for part in parts for row in rows_of(document, part, "speed")}
    columns = [name for name in ORDER if name in measured]
    table = [["workload", "pass", *(SHORT_NAMES.get(name, name) for name in columns)]]
    for part in parts:
        label = part.replace("fused_ms_deform_attn", "fused").replace("ms_deform_attn", "classic")
        for which, short in PASS_NAMES.items():
            rows = rows_of(document, part, "speed", **{"pass": which})
            if rows:
                table.append([label, short, *(_times(rows, name) for name in columns)])
        rows = {row["implementation"]: f"{row['peak_mib']:.0f}" for row in rows_of(document, part, "memory")}
        if rows:
            table.append([label, "MiB", *(rows.get(name, "-") for name in columns)])
    return table


def attention_lines(document: Document) -> Table:
    """Make a README's table of attention: a line for each implementation of each workload that was measured."""
    header = ["workload", "pass", "by", "per call ms", "in a CUDA graph ms", "x reference, per call", "peak MiB"]
    table = [header]
    for part in document["parts"]:
        memory = {(r["implementation"], r["dtype"]): r["peak_mib"] for r in rows_of(document, part, "memory")}
        for which in PASS_NAMES:
            by_mode = {
                mode: rows_of(document, part, "speed", **{"pass": which, "mode": mode}) for mode in (CALL, GRAPH)
            }
            slowest = next((row for row in by_mode[CALL] if row["implementation"] == "reference"), None)
            for row in by_mode[CALL]:
                key = row["implementation"], row["dtype"]
                alone = [r for r in by_mode[GRAPH] if (r["implementation"], r["dtype"]) == key]
                table.append(
                    [
                        part.split(" fused")[0],
                        which.replace("+", " + "),
                        " ".join(key) + (" (!)" if "inaccurate" in row else ""),
                        milliseconds(row),
                        milliseconds(alone[0]) if alone else "-",
                        f"{slowest['median_ms'] / row['median_ms']:.1f}x" if slowest else "-",
                        f"{memory[key]:.0f}" if which != FORWARD and key in memory else "-",
                    ]
                )
    return table


def matching_lines(document: Document) -> Table:
    """Make a README's table of matching: a line for each implementation of each job that was measured."""
    table = [["problems", "op", "by", "per call ms", "in a CUDA graph ms"]]
    for step, job, _ in JOBS:
        rows = rows_of(document, part_name(step, job), "matching", mode=CALL)
        for row in sorted(rows, key=lambda row: row["median_ms"]):
            name = row["implementation"]
            alone = rows_of(document, part_name(step, job), "matching", mode=GRAPH, implementation=name)
            table.append([step, job, name, milliseconds(row), milliseconds(alone[0]) if alone else "-"])
    return table


def counter_lines(document: Document) -> Table:
    """Make a README's table of Nsight Compute's counters."""
    rows = rows_of(document, COUNTERS_PART, "counters")
    names = [name for name in rows[0] if name not in ("kind", "target", "kernel")] if rows else []
    table = [["target", "kernel", *(name.replace("_", " ") for name in names)]]
    for row in rows:
        kernel = row["kernel"].partition("<")[0].partition("(")[0].rpartition(" ")[2].rpartition("::")[2]
        table.append([row["target"], kernel, *("-" if row[name] is None else f"{row[name]:.4g}" for name in names)])
    return table


def _times(rows: list[Row], implementation: str) -> str:
    by_mode = {row["mode"]: row for row in rows if row["implementation"] == implementation}
    cells = {mode: f"{row['median_ms']:.3g}" for mode, row in by_mode.items()}
    # Kernels alone, where no graph holds the call.
    alone = cells.get(GRAPH) or (f"k{cells[KERNELS]}" if KERNELS in cells else None)
    wrong = "!" if any("inaccurate" in row for row in by_mode.values()) else ""
    return "/".join(filter(None, [cells.get(CALL, "-"), alone])) + wrong if cells else "-"


def small_tables(document: Document) -> Iterator[str]:
    rows = rows_of(document, "accuracy of grad_value", "accuracy")
    if rows:
        table = [["workload", "by", "rms", "max"]]
        for row in rows:
            op = "fused" if row["op"].startswith("fused") else "classic"
            by = f"{row['implementation']} {row['dtype']}"
            table.append([op, by, f"{row['rms_roundings']:.2f}", f"{row['max_roundings']:.2f}"])
        yield "error of grad_value at the coarsest level, encoder B=1 bf16, in bf16 roundings\n" + as_text(table)
    rows = rows_of(document, "saved for backward", "saved")
    if rows:
        sizes_by: dict[str, list[str]] = {}
        for row in rows:
            sizes_by.setdefault(f"{row['implementation']} {row['dtype']}", []).append(f"{row['megabytes']:.1f}")
        listed = ", ".join(f"{name} {'/'.join(sizes)}" for name, sizes in sizes_by.items())
        yield f"saved for backward, encoder B=1, MB (one reference point a query / one a level): {listed}"
    rows = rows_of(document, "deterministic algorithms", "deterministic")
    if rows:
        yield "encoder B=2 bf16 fwd+bwd: " + ", ".join(
            f"{row['implementation']} {row['mode']} {row['median_ms']:.3g} ms ({row['ratio']:.2f}x"
            + ("" if row["repeatable"] else ", NOT REPEATABLE")
            + ")"
            for row in rows
        )


def tool_tables(document: Document) -> Iterator[str]:
    """Yield the rate of additions in L2, and the counters of a few kernels."""
    rows = rows_of(document, RED_PART, "red")
    if rows:
        listed = (f"{row['pattern']} on {row['rows']} rows {row['rows_per_s'] / 1e9:.3g}" for row in rows)
        yield "rows of 128 B added in L2, 10^9 a second: " + "; ".join(listed)
    counters = counter_lines(document)
    if len(counters) > 1:
        yield as_text(counters)


def failures(document: Document, parts: list[str]) -> list[str]:
    """List each reason once, with names: failed parts, parts without time, failed steps, and who took no part."""
    hit: list[dict[str, list[str]]] = [{}, {}, {}, {}]  # reason -> names, the worst first

    def add(rank: int, reason: str, name: str) -> None:
        names = hit[rank].setdefault(reason, [])
        if name not in names:
            names.append(name)

    for part in parts:
        record = document["parts"].get(part, {"status": "not done"})
        if record["status"] == "failed":
            add(0, f"FAILED: {record['reason']}", part)
        elif record["status"] == "not done":
            add(1, "no time for", part)
        for step, reason in record.get("failures", {}).items():
            add(2, f"failed: {reason}", f"{part}: {step}")
        for who, reason in record.get("not_run", {}).items():
            add(3, f"not run: {reason}", who)
    return [_cut(f"{_cut(reason)} ({', '.join(names)})", 400) for rank in hit for reason, names in rank.items()]


def _cut(text: str, longest: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def summary(document: Document, parts: list[str]) -> str:
    """Make at most LONGEST characters; rows that do not fit are cut from the end and counted."""
    facts = document["machine"]
    versions = (
        f"driver {facts.get('driver')}, CUDA {facts.get('cuda')}, nvcc {facts.get('nvcc')}, triton {facts['triton']}"
    )
    heading = f"{caption(facts)}; {versions}; sources {facts['sources']}"
    if facts["short"]:
        heading += "\nA DRY RUN with small maps: none of these numbers, and no verdict below, means anything."
    units = (
        "ms per call / in a CUDA graph (k: its kernels, without a graph), cold L2, medians; MiB: peak of fwd+bwd; "
        "!: misses the tolerance; original is fp32 always, ref in fp32; do: deformops; tla: torch-linear-assignment"
    )
    matching = matching_table(document)
    ends = [as_text(matching)] if len(matching) > 1 else []
    ends += [*tool_tables(document), *small_tables(document), as_text(target_table(document))]
    wrong, all_wrong = [], failures(document, parts)
    while all_wrong and len("\n".join([*wrong, all_wrong[0]])) < LONGEST // 4:
        wrong.append(all_wrong.pop(0))
    if all_wrong:
        wrong.append(f"... and {len(all_wrong)} more in the JSON")
    table, dropped = speed_table(document, parts), 0
    while True:
        cut = [f"... and {dropped} rows more in the JSON"] if dropped else []
        speed = [as_text(table), *cut] if len(table) > 1 else []
        text = "\n\n".join(["\n".join([heading, units, *speed]), *(["\n".join(wrong)] if wrong else []), *ends])
        if len(text) <= LONGEST or len(table) <= 2:
            return text
        table.pop()
        dropped += 1
