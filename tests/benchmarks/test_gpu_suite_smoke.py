"""The smoke run: a check that crashes or hangs loses only itself; the JSON and the table have each outcome."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.attention import candidates
from benchmarks.gpu import sanitize, smoke
from benchmarks.gpu.isolated import Part, Reporter, new_record
from benchmarks.gpu.smoke_checks import NATURALLY_LARGE, checks
from benchmarks.measure.machine import ROOT
from dino_kernels.ops._core import libraries
from dino_kernels.testing import CASES

# Checks, which a process of its own imports from here.


def good(reporter: Reporter) -> None:
    reporter.attempt("step", lambda: "right")


def crash(reporter: Reporter) -> None:
    reporter.attempt("before", lambda: "right")
    reporter.attempt("culprit", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    reporter.attempt("after", lambda: "right")


def hang(reporter: Reporter) -> None:
    reporter.attempt("culprit", lambda: time.sleep(1000))


def test_a_crash_and_a_hang_lose_only_themselves(tmp_path):
    functions = {"crash": crash, "hang": hang, "good": good}
    parts = [Part(name, check, needs_s=0, limit_s=1.0) for name, check in functions.items()]
    document: dict[str, Any] = {"checks": {}}
    smoke.run_all(parts, document, tmp_path / "smoke.json", seconds=100.0, jobs=2)
    assert json.loads((tmp_path / "smoke.json").read_text()) == document
    found = {name: (record["result"], record["detail"]) for name, record in document["checks"].items()}
    assert found == {
        "crash": ("FAILED", "culprit: the process ended with SIGSEGV"),
        "hang": ("FAILED", "culprit: silent for 1 s"),
        "good": ("passed", "1 step"),
    }
    assert list(document["checks"]["crash"]["steps"]) == ["before", "after"], "what follows a crash is still checked"
    lines = smoke.table(document).splitlines()
    assert [line.split()[0] for line in lines] == list(functions)
    assert all(detail in line for line, (_, detail) in zip(lines, found.values(), strict=True))


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        ({"steps": {"one": "right"}}, ("NOT FINISHED", "out of time after 1 steps")),
        ({"status": "done", "not_run": {"ncu": "it is not installed"}}, ("not run", "it is not installed")),
        ({"status": "failed", "reason": "it ended"}, ("FAILED", "it ended")),
        ({"status": "done", "steps": {"one": "right"}, "failures": {"two": "wrong"}}, ("FAILED", "two: wrong")),
        (
            {"status": "done", "steps": {"one": "right"}, "not_run": {"ncu": "it is not installed"}},
            ("passed", "1 step"),
        ),
    ],
)
def test_only_what_was_checked_and_finished_is_passed(record, outcome):
    assert smoke.outcome(new_record() | record) == outcome


def test_a_dry_run_on_the_cpu_checks_its_kernels_and_says_what_needs_a_gpu(tmp_path, monkeypatch, capsys):
    path = tmp_path / "smoke.json"
    arguments = ["smoke", "--device", "cpu", "--results", str(path), "--only", "matching", "--commit", "given"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert smoke.main() == 0
    document = json.loads(path.read_text())
    assert {name: record["result"] for name, record in document["checks"].items()} == {
        "Triton matching": "not run",
        "matching_cost and hungarian_match": "passed",
    }
    assert document["checks"]["matching_cost and hungarian_match"]["steps"].keys() == {"matching fp32", "matching bf16"}
    assert document["machine"]["device"] == "cpu" and document["candidates"] == [] and document["seconds"] > 0
    printed = capsys.readouterr().out
    assert "it needs a CUDA device; this is cpu" in printed and f"written: {path}" in printed


def test_every_kernel_family_is_checked():
    parts = {part.name: part for part in checks("cuda")}
    for dtype in ("fp32", "bf16"):
        large, small = (parts[f"attention {size} {dtype}"].arguments for size in ("large", "small"))
        assert (large["multiprocessors"], small["multiprocessors"]) == (candidates.LARGE, candidates.SMALL)
        assert {f"attention as it comes {dtype}", f"deterministic {dtype}"} <= set(parts)
        assert set(large["names"]) <= {case.name for case in CASES}
    families = {"libraries", "racecheck of tiles", "memcheck of tiles", "Triton attention bf16", "CUDA graph"}
    families |= {"matching_cost and hungarian_match", "linear_sum_assignment"}
    families |= {f"attention {candidate.id} bf16" for candidate in candidates.candidates()}
    assert families <= set(parts)
    assert {part.arguments["backend"] for part in parts.values() if "backend" in part.arguments} == {"cuda"}


def test_one_case_is_large_on_an_h100_without_being_told():
    """More groups of lanes than 1024 threads on each of 132 multiprocessors, of 4 lanes in 16 bit."""
    case = NATURALLY_LARGE
    assert case.queries == case.S and case.batch * case.queries * case.heads * 4 > 1024 * 132


def test_the_number_of_multiprocessors_is_told_to_the_library(monkeypatch):
    told = []

    @contextmanager
    def assume(count: int):
        told.append(count)
        yield
        told.append(None)

    monkeypatch.setattr(libraries, "assume_multiprocessors", assume, raising=False)
    with sanitize.sized("cuda", candidates.LARGE):
        assert told == [1]
    assert told == [1, None]
    with sanitize.sized("cpu", candidates.LARGE):
        assert told == [1, None], "other backends have one kernel for all sizes"


def test_a_library_that_cannot_be_told_is_an_error(monkeypatch):
    monkeypatch.delattr(libraries, "assume_multiprocessors", raising=False)
    with pytest.raises(RuntimeError, match=r"cannot assume 1 multiprocessors: .* build the library again"):
        candidates.multiprocessors(1).__enter__()


def test_without_a_gpu_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smoke"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^no CUDA device here .*--device cpu is a dry run$"):
        smoke.main()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_gpu_smoke_stops_without_a_gpu_before_it_installs_anything():
    command = ["make", "gpu-smoke", f"PYTHON={sys.executable}", "GPU_INSTALL=1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, cwd=Path(ROOT), env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 2 and not finished.stdout
    ours = [line for line in finished.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1 and ours[0].startswith("no CUDA device here")
