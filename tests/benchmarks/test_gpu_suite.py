"""The GPU suite goes on where it stopped, outlives crashes, and says what was met; measured on a CPU as a dry run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.attention.stage import Contestant
from benchmarks.attention.workloads import miniature
from benchmarks.gpu import graphs, matching, parts, suite
from benchmarks.gpu.isolated import Part, Reporter, new_record, run
from benchmarks.gpu.parts import saved_bytes
from benchmarks.gpu.table import LONGEST, summary, targets
from benchmarks.matching.peers import BASELINES, MatchingInputs
from benchmarks.matching.workloads import ASSIGNMENT, COST, MATCHER
from benchmarks.measure.race import cpu_stopwatch, race

# Parts, which a worker imports from here.


def row_of(value: int, calls: Path) -> list[dict[str, Any]]:
    with calls.open("a") as file:
        file.write(f"{value} ")
    return [{"kind": "test", "value": value}]


def good(reporter: Reporter, value: int, calls: Path) -> None:
    reporter.attempt("step", lambda: row_of(value, calls))


def crash_in_the_middle(reporter: Reporter, calls: Path) -> None:
    reporter.attempt("before", lambda: row_of(1, calls))
    reporter.attempt("culprit", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    reporter.attempt("after", lambda: row_of(2, calls))


def spoil_in_the_middle(reporter: Reporter, calls: Path) -> None:
    reporter.attempt("before", lambda: row_of(1, calls))
    reporter.attempt("culprit", lambda: 1 / 0, spoils=True)
    reporter.attempt("after", lambda: row_of(os.getpid(), calls))


def hang(reporter: Reporter, calls: Path) -> None:
    reporter.attempt("culprit", lambda: time.sleep(1000))
    reporter.attempt("after", lambda: row_of(3, calls))


def crash_outside_any_step(reporter: Reporter) -> None:
    os._exit(7)


def raise_outside_any_step(reporter: Reporter) -> None:
    raise ValueError("planted")


def values(record: dict[str, Any]) -> list[int]:
    return [row["value"] for row in record["rows"]]


def do(parts: list[Part], records: dict[str, Any] | None = None, seconds: float = 100.0) -> dict[str, Any]:
    records = {} if records is None else records
    run(parts, records, time.time() + seconds, lambda: None)
    return records


def test_crashes_and_hangs_cost_their_step_and_nothing_else(tmp_path):
    calls = tmp_path / "calls"
    records = do(
        [
            Part("first", good, {"value": 0, "calls": calls}, needs_s=0),
            Part("crash", crash_in_the_middle, {"calls": calls}, needs_s=0),
            Part("nameless crash", crash_outside_any_step, needs_s=0),
            Part("spoilt", spoil_in_the_middle, {"calls": calls}, needs_s=0),
            Part("hang", hang, {"calls": calls}, needs_s=0, limit_s=1.0),
            Part("error", raise_outside_any_step, needs_s=0),
            Part("last", good, {"value": 4, "calls": calls}, needs_s=0),
        ]
    )
    assert values(records["first"]) == [0] and values(records["last"]) == [4]
    assert values(records["crash"]) == [1, 2], "each step is counted once, also behind the crash"
    assert records["crash"]["failures"] == {"culprit": "the process ended with SIGSEGV"}
    assert records["nameless crash"]["reason"] == "the process ended with exit code 7 outside any step"
    assert records["spoilt"]["failures"] == {"culprit": "ZeroDivisionError: division by zero"}
    assert values(records["spoilt"])[0] == 1 and values(records["spoilt"])[1] != os.getpid()
    assert records["hang"]["failures"] == {"culprit": "silent for 1 s"} and values(records["hang"]) == [3]
    assert records["error"]["reason"] == "ValueError: planted"
    status = {name: record["status"] for name, record in records.items()}
    assert {name for name in status if status[name] == "failed"} == {"nameless crash", "error"}
    assert set(status.values()) == {"done", "failed"}


def test_a_restart_skips_finished_parts_and_finished_steps(tmp_path):
    calls = tmp_path / "calls"
    first = Part("first", good, {"value": 0, "calls": calls}, needs_s=0)
    second = Part("second", crash_in_the_middle, {"calls": calls}, needs_s=0)
    records = do([first])
    cut_short = new_record()
    cut_short["rows"], cut_short["steps"] = [{"kind": "test", "value": 1}], {"before": 1}
    records["second"] = cut_short
    do([first, second], records)
    assert calls.read_text() == "0 2 "
    assert values(records["second"]) == [1, 2]


def test_what_there_is_no_time_for_is_not_begun(tmp_path):
    part = Part("part", good, {"value": 0, "calls": tmp_path / "calls"}, needs_s=200)
    assert do([part])["part"] == new_record()


FACTS = {
    "device": "cuda",
    "gpu": "NVIDIA H100 80GB HBM3",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "commit": "a" * 40,
    "uncommitted_changes": False,
    "date": "2026-01-01",
    "sources": "0123456789ab",
    "short": False,
}


def test_results_of_another_commit_or_gpu_are_refused_and_fresh_starts_again(tmp_path):
    path = tmp_path / "results.json"
    record = new_record() | {"status": "done"}
    path.write_text(json.dumps({"machine": FACTS, "parts": {"part": record}, "targets": []}))
    assert suite.opened(path, dict(FACTS), fresh=False)["parts"] == {"part": record}
    with pytest.raises(SystemExit, match=r"another commit aaaa.*, now bbbb[^;]*--fresh"):
        suite.opened(path, FACTS | {"commit": "b" * 40}, fresh=False)
    with pytest.raises(SystemExit, match="another gpu NVIDIA H100 80GB HBM3, now NVIDIA A100; another sources"):
        suite.opened(path, FACTS | {"gpu": "NVIDIA A100", "sources": "x"}, fresh=False)
    assert suite.opened(path, FACTS | {"commit": "b" * 40}, fresh=True)["parts"] == {}


def test_failed_and_unfinished_parts_are_tried_again(tmp_path):
    path = tmp_path / "results.json"
    record = new_record() | {"status": "failed", "failures": {"check": "planted"}, "steps": {"other": 1}}
    path.write_text(json.dumps({"machine": FACTS, "parts": {"part": record}}))
    again = suite.opened(path, dict(FACTS), fresh=False)["parts"]["part"]
    assert (again["status"], again["failures"], again["steps"]) == ("not done", {}, {"other": 1})


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("gpu") / "results.json"
    return path, dry_run_into(path)


def dry_run_into(path: Path) -> str:
    arguments = ["gpu", "--device", "cpu", "--short", "--results", str(path)]
    arguments += ["--only", "RT-DETR fused_ms_deform_attn bf16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        patch.setenv("OMP_NUM_THREADS", "1")
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert suite.main() == 0, printed
    return "\n".join(printed)


def test_a_dry_run_on_the_cpu_times_everyone_and_says_why_there_are_no_graphs(dry_run):
    path, printed = dry_run
    (record,) = json.loads(path.read_text())["parts"].values()
    assert record["status"] == "done" and not record["failures"]
    assert {row["mode"] for row in record["rows"]} == {"call"}
    assert {row["pass"] for row in record["rows"]} == {"forward", "forward+backward"}
    assert {"reference", "cpu"} <= {row["implementation"] for row in record["rows"]}
    assert record["not_run"]["CUDA graphs and peak memory"] == "they need a CUDA device; this is cpu"
    assert "A DRY RUN" in printed and "this is cpu" in printed


def test_the_same_command_again_measures_nothing_again(dry_run):
    path, _ = dry_run
    before = json.loads(path.read_text())["parts"]
    dry_run_into(path)
    assert json.loads(path.read_text())["parts"] == before


@pytest.mark.parametrize("job", [COST, ASSIGNMENT, MATCHER])
def test_a_dry_run_of_matching_times_everyone_who_can(job):
    events: list[tuple] = []
    step = matching.miniature(matching.STEPS["7x16 COCO"])
    matching.speed(Reporter(events.append, new_record()), job, step, "cpu", 0.0, 2)
    assert not [event for event in events if event[0] == "failed"]
    rows = next(event[2] for event in events if event[:2] == ("finished", f"time {job}"))
    assert {row["mode"] for row in rows} == {"call"} and {row["op"] for row in rows} == {job}
    assert BASELINES[job] in {row["implementation"] for row in rows}
    assert ("not_run", "CUDA graphs and launches", "they need a CUDA device; this is cpu") in events


def test_the_plan_begins_with_what_matters_and_has_every_workload():
    plan = suite.plan("cuda", short=False)
    assert plan[0].name == "encoder B=2 fused_ms_deform_attn bf16"
    assert plan[1].name == "decoder Q=1100 fused_ms_deform_attn bf16"
    timed = {(part.arguments["case"].id, part.arguments["dtype"]) for part in plan if "op" in part.arguments}
    for case in suite.WORKLOADS.values():
        assert {(case.id, "bf16"), (case.id, "fp32")} <= timed
    assert len({part.name for part in plan}) == len(plan)
    names = [part.name for part in plan]
    begin = names[: names.index("Nsight Compute")]
    assert "rate of L2 additions" in begin and {f"candidates {name}" for name in names[:2]} <= set(begin)
    jobs = [part.arguments["job"] for part in plan if part.name in begin and "job" in part.arguments]
    assert set(jobs) == {COST, ASSIGNMENT, MATCHER}
    for conflicts in ("early", "collapsed"):
        assert {f"matching 7x16 T=20 {conflicts} {job}" for job in (MATCHER, ASSIGNMENT)} <= set(names)
    assert {f"{name} compiled" for name in names[:2]} <= set(names)


@pytest.mark.parametrize(("tasks", "pairs"), [(100, 100), (300, 300), (600, 300)])
def test_the_published_shapes_of_torch_linear_assignment_are_its_workers_and_tasks(tasks, pairs):
    inputs = MatchingInputs(matching.STEPS[f"208 of 300x{tasks}"], "cpu")
    assert list(inputs.padded.shape) == [208, 300, tasks]
    row = linear_sum_assignment(inputs.padded[0])
    assert len(row[0]) == pairs


def test_matrices_of_all_pairs_that_fit_no_memory_are_not_made():
    step = matching.STEPS["208 of 300x600"]
    assert "entries, more than" in str(matching.elsewhere("scipy", ASSIGNMENT, step))
    assert matching.elsewhere("scipy-float64", ASSIGNMENT, step) is None
    assert all(
        matching.elsewhere("scipy", ASSIGNMENT, other) is None
        for name, other in matching.STEPS.items()
        if not name.startswith("208")
    )


def planted() -> dict[str, Any]:
    """Results in which every implementation ran every workload, in milliseconds that are easy to divide."""
    ms = {"reference": 20.0, "cuda": 0.1, "triton": 0.4, "transformers": 8.0, "mmcv": 1.0}
    ms |= {"torch.compile": 2.0, "deformops": 0.16, "deformops-fp32acc": 0.2, "deformops-cuda": 0.3, "original": 0.5}
    document: dict[str, Any] = {"machine": FACTS, "parts": {}}
    for part in suite.plan("cuda", short=False):
        record: dict[str, Any] = new_record() | {"status": "done"}
        document["parts"][part.name] = record
        for name, time_ms in ms.items() if "op" in part.arguments else ():
            row: dict[str, Any] = {
                "implementation": name,
                "ours": name in ("reference", "cuda", "triton"),
                "dtype": "bf16",
            }
            record["rows"] += [
                row | {"kind": "speed", "pass": which, "mode": mode, "median_ms": time_ms * factor}
                for which in ("forward", "forward+backward")
                # In a graph ours gains less.
                for mode, factor in (("call", 1.0), ("graph", 0.9 if name == "cuda" else 0.5))
            ]
            record["rows"].append(row | {"kind": "memory", "peak_mib": 1234.0, "least_mib": 100.0})
    plant_matching(document)
    ours = {"implementation": "cuda", "ours": True, "dtype": "bf16"}
    document["parts"]["accuracy of grad_value"]["rows"] = [
        ours | {"kind": "accuracy", "op": "ms_deform_attn", "rms_roundings": 0.4, "max_roundings": 2.5},
        ours | {"kind": "accuracy", "op": "ms_deform_attn", "rms_roundings": 9.0, "max_roundings": 9.0, "ours": False},
    ]
    document["parts"]["saved for backward"]["rows"] = [
        ours | {"kind": "saved", "reference_levels": levels, "megabytes": mb} for levels, mb in ((1, 28.6), (4, 29.9))
    ]
    document["parts"]["deterministic algorithms"]["rows"] = [
        ours | {"kind": "deterministic", "mode": mode, "median_ms": 1.0, "ratio": ratio, "repeatable": True}
        for mode, ratio in (("default", 1.0), ("deterministic", 1.75))
    ]
    document["targets"] = targets(document)
    return document


def plant_matching(document: dict[str, Any]) -> None:
    ms = {"cuda": 0.02, "triton": 0.05, "cuda-lists": 0.01, "dino": 2.5, "transformers": 3.0, "scipy": 9.0}
    ms |= {"torch-linear-assignment": 1.0, "tla-unchecked": 0.3}
    for step, job, _ in matching.JOBS:
        rows = document["parts"][matching.part_name(step, job)]["rows"]
        for name, time_ms in ms.items():
            row: dict[str, Any] = {"op": job, "implementation": name, "ours": "cuda" in name or name == "triton"}
            rows += [row | {"kind": "matching", "mode": mode, "median_ms": time_ms} for mode in ("call", "graph")]
            if row["ours"]:
                rows.append(row | {"kind": "launches", "launches": 1 if name == "cuda-lists" else 3})


def test_targets_are_ratios_of_our_fastest_kernel_and_tell_where_they_are_met():
    found = {row["target"]: row for row in planted()["targets"]}

    def check(name: str, call: float | None, graph: float | None, verdict: str) -> None:
        row = found.pop(name)
        assert (row["per call"], row["in a graph"], row["verdict"]) == (call, graph, verdict), name

    for which in ("fwd", "fwd+bwd"):
        check(f"encoder B=2 bf16 {which}: x deformops in fp32", 2.0, 1.111, "met per call only")
        check(f"encoder B=2 bf16 {which}: x deformops", 1.6, 0.889, "no target")
        check(f"encoder B=2 bf16 {which}: x original", 5.0, 2.778, "met per call only")
        check(f"encoder B=2 fp32 {which}: x original", 5.0, 2.778, "met")
        check(f"decoder Q=1100 bf16 {which}: x best peer", None, 0.889, "NOT MET")
    check("encoder B=2 bf16 fwd an image: x L1 bound of 25 us", 2.0, 1.8, "met")
    check("matching 7x16 of 900x20, cost + assignment: us", None, 20.0, "met")
    for conflicts in ("early", "collapsed"):
        check(f"matching 7x16 of 900x20, {conflicts}, cost + assignment: us", None, 20.0, "no target")
    check("matching 7x16 of 900x20, cost + assignment: launches", 3, None, "NOT MET")
    check("assignment 7x16 of 900x20: x torch-linear-assignment", 50.0, 15.0, "met per call only")
    check("matching 7x16 T=20: x eager GPU cost + SciPy", 125.0, None, "met")
    check("matching 7x16 COCO: x eager GPU cost + SciPy", 125.0, None, "met")
    check("saved for backward, encoder B=1 bf16: MB", 28.6, None, "met")
    check("grad_value at the coarsest level, bf16: roundings", 2.5, None, "NOT MET")
    check("deterministic over default, encoder B=2 bf16 fwd+bwd", 1.75, None, "no target")
    assert not found


def test_targets_of_what_was_not_measured_say_so():
    document = {"machine": FACTS, "parts": {}}
    assert {row["verdict"] for row in targets(document)} == {"not measured"}


def test_the_summary_fits_the_end_of_a_log_and_names_what_failed():
    document = planted()
    names = [part.name for part in suite.plan("cuda", short=False)]
    record = document["parts"][names[0]]
    record["failures"] = {f"check peer{i}": f"RuntimeError: number {i} " + 500 * "x" for i in range(50)}
    document["parts"][names[-1]] |= {"status": "failed", "reason": "planted"}
    del document["parts"][names[-2]]
    text = summary(document, names)
    assert len(text) <= LONGEST
    for expected in ("number 0", f"FAILED: planted ({names[-1]})", f"no time for ({names[-2]})", "more in the JSON"):
        assert expected in text
    assert text.rstrip().splitlines()[-1].startswith("deterministic over default")
    assert max(map(len, text.splitlines())) < 700


def test_our_failures_fail_the_run_and_a_peers_do_not():
    document = planted()
    record = document["parts"]["RT-DETR fused_ms_deform_attn bf16"]
    record["failures"] = {"graph forward deformops-bf16": "planted"}
    assert not suite.failed(document)
    record["failures"] = {"graph forward cuda-bf16": "planted"}
    assert suite.failed(document)


class FakeGraph:
    """Replays on the CPU, `result` written anew."""

    def __init__(self, call, times=1):
        self.result = call()
        self.call, self.times = call, times

    def __call__(self):
        for _ in range(self.times):
            self.result.copy_(self.call())


def test_a_graph_that_leaves_out_its_kernel_is_no_speed():
    x = torch.randn(8)
    working: Any = FakeGraph(lambda: 2 * x)
    graphs.assert_replays(working, 2 * x)
    empty: Any = FakeGraph(lambda: 2 * x, times=0)
    with pytest.raises(AssertionError, match="a replay's output differs by nan"):
        graphs.assert_replays(empty, 2 * x)


def test_a_graph_of_indices_that_leaves_out_its_kernel_is_no_speed():
    indices = torch.tensor([[3, -1], [7, 0]])
    working: Any = FakeGraph(lambda: indices + 0)
    graphs.assert_replays(working, indices)
    empty: Any = FakeGraph(lambda: indices + 0, times=0)
    with pytest.raises(AssertionError, match=r"a replay's output differs by 1e\+09"):
        graphs.assert_replays(empty, indices)


def test_graphs_are_timed_by_replays_and_a_graph_of_ten_counts_one_call(monkeypatch):
    monkeypatch.setattr(graphs, "Graphed", FakeGraph)
    monkeypatch.setattr(graphs, "assert_never_waits", refuse_a_waiting_call)
    events: list[tuple] = []
    x = torch.randn(8)
    calls = {Contestant("cuda", "bf16"): lambda: 2 * x, Contestant("mmcv", "bf16"): wait}

    def stopwatch(call) -> float:
        call()
        return 1e-4 * call.times

    def time_calls(which, captured, mode, each):
        timings = race(captured, stopwatch, 0.0, 3)
        return [{"by": c.id, "seconds": timing.per_call(each).samples} for c, timing in timings.items()]

    graphs.time_graphs(Reporter(events.append, new_record()), "forward", "graph of 10", 10, calls, time_calls)
    rows = next(event[2] for event in events if event[:2] == ("finished", "time forward graph of 10"))
    assert [row["by"] for row in rows] == ["cuda-bf16"]
    assert set(rows[0]["seconds"]) == {1e-3 / 10}
    reason = "it waits for the GPU (called a synchronizing CUDA operation)"
    assert ("not_run", "forward mmcv-bf16 in a graph", reason) in events


class CpuThatSaysCuda(str):
    """Torch takes it for "cpu", and the suite for "cuda"."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other == "cuda"

    def __ne__(self, other: object) -> bool:
        return other != "cuda"


class FakeResultGraph(FakeGraph):
    def __call__(self):
        for name, tensor in graphs.tensors_of(self.call()).items():
            graphs.tensors_of(self.result)[name].copy_(tensor)


def test_where_there_is_a_gpu_graphs_and_memory_are_measured_for_everyone(monkeypatch):
    monkeypatch.setattr(graphs, "Graphed", FakeResultGraph)
    monkeypatch.setattr(graphs, "assert_never_waits", refuse_a_waiting_call)
    monkeypatch.setattr(parts, "peak_on_cuda", lambda call: {"peak": 2.0, "least": 1.0} if call() else {})
    monkeypatch.setattr(parts, "stopwatch_for", lambda device, kernels_only: cpu_stopwatch)
    monkeypatch.setattr(parts, "line_up", lambda dtype, names: [Contestant("reference", "fp32")])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    events: list[tuple] = []
    case = miniature(suite.WORKLOADS["decoder Q=900"])
    device = CpuThatSaysCuda("cpu")
    reporter = Reporter(events.append, new_record())
    parts.speed(reporter, "fused_ms_deform_attn", case, "bf16", device, 0.0, 2, kernels=True)
    assert not [event for event in events if event[0] in ("failed", "not_run")]
    rows = [row for event in events if event[0] == "finished" and isinstance(event[2], list) for row in event[2]]
    modes = {(row["kind"], row.get("pass"), row.get("mode")) for row in rows}
    passes = ("forward", "forward+backward")
    expected = {("speed", which, mode) for which in passes for mode in ("call", "kernels", "graph", "graph of 10")}
    assert modes == expected | {("memory", None, None)}


class FakeCostGraph(FakeGraph):
    """Of DINO's own cost, a tensor for each set."""

    def __call__(self):
        for into, tensor in zip(
            graphs.tensors_of(self.result).values(), graphs.tensors_of(self.call()).values(), strict=True
        ):
            into.copy_(tensor)


def test_where_there_is_a_gpu_graphs_and_launches_of_matching_are_measured(monkeypatch):
    monkeypatch.setattr(graphs, "Graphed", FakeCostGraph)
    monkeypatch.setattr(graphs, "assert_never_waits", refuse_a_waiting_call)
    monkeypatch.setattr(matching, "launches", lambda call: 1)
    monkeypatch.setattr(matching, "stopwatch_for", lambda device: cpu_stopwatch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    events: list[tuple] = []
    step = matching.miniature(matching.STEPS["7x16 T=20"])
    matching.speed(Reporter(events.append, new_record()), COST, step, CpuThatSaysCuda("cpu"), 0.0, 2)
    assert not [event for event in events if event[0] == "failed"]
    rows = [row for event in events if event[0] == "finished" and isinstance(event[2], list) for row in event[2]]
    found = {(row["kind"], row.get("mode"), row["implementation"]) for row in rows}
    assert {("matching", mode, name) for mode in ("call", "graph") for name in ("dino", "reference")} <= found
    launched = {row["implementation"] for row in rows if row["kind"] == "launches"}
    assert "reference" in launched and "dino" not in launched


def wait() -> None:
    raise RuntimeError("called a synchronizing CUDA operation")


def refuse_a_waiting_call(call) -> None:
    call()


def test_saved_bytes_count_each_storage_once():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 4000
    assert saved_bytes(lambda: x[:500] * x[500:]) == 4000
    assert saved_bytes(lambda: x.exp().exp()) == 8000
