"""Measure with NVIDIA's tools: the rate of vector reductions, and the counters of a few kernels."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.isolated import Reporter
from benchmarks.gpu.profile_target import TARGETS
from benchmarks.measure import tools
from benchmarks.measure.machine import ROOT

RED_RATE = ROOT / "benchmarks" / "gpu" / "red_rate.cu"
TOOL_S = 80.0  # shorter than the limit of the part's step
# Nsight Compute's names by ours.
METRICS = {
    "microseconds": "gpu__time_duration.sum",
    "instructions": "smsp__inst_executed.sum",
    "issue_active_pct": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "warps_active_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "l1_hit_pct": "l1tex__t_sector_hit_rate.pct",
    "shared_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "l2_red_sectors": "lts__t_sectors_op_red.sum",
    "long_scoreboard": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
}
_UNITS_PER_MICROSECOND = {"nsecond": 1e3, "ns": 1e3, "usecond": 1.0, "us": 1.0, "msecond": 1e-3, "ms": 1e-3}


def red_rate(reporter: Reporter, device: str) -> None:
    """Compile and run red_rate.cu: rows of 128 bytes a second that the L2 cache adds, by pattern."""
    if nvcc := find(reporter, device, "nvcc"):
        reporter.attempt("red rate", partial(_red_rows, nvcc))


def find(reporter: Reporter, device: str, tool: str) -> str | None:
    """Return the path of a tool that needs a GPU, or report why it cannot run and return None."""
    path = tools.find(tool) if device == "cuda" else None
    if path is None:
        missing = f"{tool} is not installed" if device == "cuda" else f"it needs a CUDA device; this is {device}"
        reporter.not_run(tool, missing)
    return path


def _red_rows(nvcc: str) -> list[dict[str, Any]]:
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_red_rate(nvcc, f"{major}{minor}", Path(folder))
        rows = json.loads(tools.run([str(program)], TOOL_S / 2))
    wrong = [f"{row['pattern']} on {row['rows']} rows" for row in rows if not row["right"]]
    if wrong:
        raise AssertionError(f"sums are wrong: {', '.join(wrong)}")
    return [{"kind": "red", **row} for row in rows]


def compile_red_rate(nvcc: str, architecture: str, folder: Path) -> Path:
    """Compile the program into `folder`, for an architecture such as "90"; return its path."""
    program = folder / "red_rate"
    code = ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    tools.run([nvcc, "-O3", "-std=c++17", *code, str(RED_RATE), "-o", str(program)], TOOL_S / 2)
    return program


def nsight_compute(reporter: Reporter, device: str) -> None:
    """Read counters of five kernels, each with Nsight Compute in its own process."""
    if ncu := find(reporter, device, "ncu"):
        for target in TARGETS:
            reporter.attempt(f"ncu {target}", partial(_counters, ncu, target))


def _counters(ncu: str, target: str) -> list[dict[str, Any]]:
    options = ["--csv", "--print-units", "base", "--clock-control", "none", "--profile-from-start", "off"]
    options += ["--target-processes", "all", "--metrics", ",".join(METRICS.values())]
    program = [sys.executable, "-m", "benchmarks.gpu.profile_target", target]
    return [
        {"kind": "counters", "target": target, **row} for row in parse(tools.run([ncu, *options, *program], TOOL_S))
    ]


def parse(printed: str) -> list[dict[str, Any]]:
    """Make a row for each launch that `ncu --csv --metrics` printed: `kernel` and the numbers of METRICS.

    Raises:
        RuntimeError: nothing was launched.
    """
    lines = [line for line in printed.splitlines() if line.startswith('"')]
    names = {metric: name for name, metric in METRICS.items()}
    launches: dict[str, dict[str, Any]] = {}
    for record in csv.DictReader(StringIO("\n".join(lines))):
        row = launches.setdefault(record["ID"], {"kernel": record["Kernel Name"][:120]} | dict.fromkeys(METRICS))
        name = names.get(record["Metric Name"])
        if name is not None:
            row[name] = _number(record["Metric Value"], record["Metric Unit"])
    if not launches:
        raise RuntimeError(f"ncu profiled no kernel: {printed[-tools.LONGEST_TAIL :]}")
    return list(launches.values())


def _number(text: str, unit: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:  # "n/a", where this GPU has no such counter
        return None
    return number / _UNITS_PER_MICROSECOND.get(unit, 1.0)
