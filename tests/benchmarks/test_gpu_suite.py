"""GPU runs resume, outlive crashes and report every outcome; what they measure is tried on a CPU."""

import json
import re
import subprocess
import sys
import time
from itertools import groupby

import pytest
import torch

from benchmarks.attention.stage import PASSES
from benchmarks.attention.workloads import OPS, RF_DETR, miniature
from benchmarks.gpu import graphs, matching, parts, profile_target, smoke, suite, tests, timing, tools
from benchmarks.gpu.isolated import Part, Reporter, new_record, run
from benchmarks.gpu.smoke_checks import checks
from benchmarks.gpu.table import LONGEST, summary, targets
from benchmarks.matching.workloads import ASSIGNMENT
from benchmarks.measure.machine import ROOT
from benchmarks.measure.stage import Contestant, Stage
from tests.benchmarks import fake_parts

FACTS = dict.fromkeys(("device", "gpu", "torch", "triton", "commit", "sources", "date"), "x")
PLAN = suite.plan("cuda", short=False)


def fakes(*names, **arguments):
    return [Part(name, getattr(fake_parts, name), arguments, 0, 1 if name == "hang" else 60) for name in names]


def test_crashes_and_hangs_cost_their_step_and_nothing_else():
    records = {}
    run(fakes("crash", "spoil", "hang", "end", "good"), records, time.time() + 100, lambda: None)
    reasons = ["the process ended with SIGSEGV", "ZeroDivisionError: division by zero", "silent for 1 s", None, None]
    assert [record["failures"].get("culprit") for record in records.values()] == reasons
    assert records["end"]["reason"] == "the process ended with exit code 7 outside any step"
    assert [name for name, record in records.items() if record["status"] != "done"] == ["end"]
    values = [[row["value"] for row in record["rows"]] for record in records.values()]
    assert values == [[1, 2], [3], [], [], [0]], "each step is counted once, also after a crash"


def run_main(main, monkeypatch, path, *options):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["run", "--device", "cpu", "--results", str(path), *options])
    return main(), json.loads(path.read_text())


def test_the_suite_resumes_refuses_results_of_something_else_and_fails_with_a_part(tmp_path, monkeypatch, capsys):
    log, path = tmp_path / "log", tmp_path / "results.json"
    planned = [*fakes("good", log=log), *fakes("end"), Part("long", fake_parts.good, needs_s=1000)]
    monkeypatch.setattr(suite, "plan", lambda *_: planned)
    monkeypatch.setattr(suite, "sources", lambda: "x")
    for _ in range(2):
        code, document = run_main(suite.main, monkeypatch, path, "--short")
        status = {name: record["status"] for name, record in document["parts"].items()}
        assert (code, status) == (1, {"good": "done", "end": "failed", "long": "not done"})
    assert log.read_text() == "good ", "a finished part is not measured again"
    assert "FAILED: the process ended with exit code 7" in capsys.readouterr().out
    monkeypatch.setattr(suite, "sources", lambda: "y")
    with pytest.raises(SystemExit, match=r"another sources x, now y\.\n.*--fresh"):
        run_main(suite.main, monkeypatch, path, "--short")
    assert run_main(suite.main, monkeypatch, path, "--short", "--fresh", "--only", "good")[0] == 0


def test_the_smoke_run_passes_only_what_was_checked_and_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(smoke, "checks", lambda device: fakes("crash", "good"))
    code, document = run_main(smoke.main, monkeypatch, tmp_path / "smoke.json", "--jobs", "2")
    assert code == 1 and [(check["result"], check["detail"]) for check in document["checks"].values()] == [
        ("FAILED", "culprit: the process ended with SIGSEGV"),
        ("passed", "1 step"),
    ]
    assert smoke.outcome(new_record())[0] == "NOT FINISHED"
    assert smoke.outcome(new_record() | {"status": "done", "not_run": {"ncu": "no"}}) == ("not run", "no")


def test_the_suite_needs_none_of_the_detectors_packages(run_python):
    blocked = "import sys\nsys.modules |= dict.fromkeys(('PIL', 'safetensors', 'faster_coco_eval', 'tqdm', 'tyro'))\n"
    modules = [f"benchmarks.gpu.{path.stem}" for path in (ROOT / "benchmarks/gpu").glob("[!_]*.py")]
    assert len(modules) > 10
    assert run_python(f"{blocked}import {', '.join(sorted(modules))}\nassert 'dino' not in sys.modules") == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_stops_with_one_line():
    command = ["make", "--keep-going", "gpu-smoke", "gpu", f"PYTHON={sys.executable}", "GPU_INSTALL=1"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = [line for line in finished.stderr.splitlines() if not line.startswith("make")]
    assert finished.returncode == 2 and not finished.stdout and line.startswith("no CUDA device here")


def test_gpu_tests_that_take_too_long_are_interrupted_and_still_summed_up(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts sooner
    (tmp_path / "test_x.py").write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(1000)\n")
    assert tests.run([sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", str(tmp_path)], 5.0) == 1
    assert "1 passed" in capfd.readouterr().out


def measured(measure, *arguments, **options):
    events = []
    measure(Reporter(events.append, new_record()), *arguments, **options)
    assert not [event for event in events if event[0] == "failed"]
    rows = [row for event in events if event[0] == "finished" and isinstance(event[2], list) for row in event[2]]
    return rows, {event[1]: event[2] for event in events if event[0] == "not_run"}


def test_a_dry_run_times_everyone_and_reports_what_needs_a_gpu():
    rows, not_run = measured(parts.speed, OPS[1], miniature(RF_DETR), "bf16", "cpu", 0.0, 2, ("cpu", "cuda"))
    found = {(row["pass"], row["mode"], row["implementation"]) for row in rows}
    assert found == {(which, "call", name) for which in PASSES for name in ("cpu", "reference")}
    assert not_run["CUDA graphs and memory"] == "they need a CUDA device; this is cpu" and "cuda-bf16" in not_run
    rows, _ = measured(matching.speed, ASSIGNMENT, matching.miniature(matching.STEPS["7x16 COCO"]), "cpu", 0.0, 2)
    assert {"scipy", "cpu"} <= {row["implementation"] for row in rows}
    assert measured(tools.red_rate, "cpu")[1] == {"nvcc": "it needs a CUDA device; this is cpu"}


class Graph:
    def __init__(self, call, times=1):
        self.call, self.times, self.result = call, times, call()

    def __call__(self):
        for _ in range(self.times):
            self.result.copy_(self.call())


class Doubling(Stage):
    """A stage on "cuda" that runs here."""

    def unsupported(self, contestant):
        return None

    def check(self, contestant):
        assert contestant.implementation != "wrong", "off by one"

    def call(self, which, contestant):
        def wait():
            raise RuntimeError("called a synchronizing CUDA operation")

        if contestant.implementation == "host":
            return lambda: [([0], [1])]
        return wait if contestant.implementation == "waits" else lambda: 2 * torch.ones(3)


def test_calls_are_timed_in_graphs_and_a_wrong_peer_is_marked(monkeypatch):
    monkeypatch.setattr(timing, "Graphed", Graph)
    monkeypatch.setattr(timing, "assert_never_waits", lambda call: call())
    monkeypatch.setattr(timing, "stopwatch_for", lambda *_: lambda call: call() is None or 1e-3)
    assert not graphs.on_gpu([torch.ones(2)]) and not graphs.on_gpu([([0], [1])])
    monkeypatch.setattr(timing, "on_gpu", lambda result: isinstance(result, torch.Tensor))
    stage = Doubling("double", "small", "cuda", ("forward",))
    everyone = [Contestant(name, "bf16") for name in ("right", "wrong", "waits", "host")]
    rows, not_run = measured(timing.speed, stage, everyone, 0.0, 2, modes=("kernels",), graphs={"graph of 10": 10})
    assert "it waits" in not_run["forward waits-bf16 in a graph"]
    assert not_run["forward host-bf16 in a graph"] == "it runs on the host"
    found = {(row["implementation"], row["mode"]): row for row in rows}
    assert found.keys() == {(name, mode) for name in ("right", "wrong") for mode in ("kernels", "graph of 10")}
    assert found["wrong", "kernels"]["inaccurate"].startswith("off by one")


@pytest.mark.parametrize("numbers", [torch.randn(8), torch.tensor([[3, -1], [7, 0]])])
def test_a_graph_that_leaves_out_its_kernel_has_no_speed(numbers):
    graphs.assert_replays(Graph(lambda: numbers + 0), numbers)  # pyright: ignore[reportArgumentType]
    with pytest.raises(AssertionError, match=r"a replay's output differs by (nan|1e\+09)"):
        graphs.assert_replays(Graph(lambda: numbers + 0, times=0), numbers)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("target", profile_target.TARGETS)
def test_every_profiled_call_runs(target):
    profile_target.TARGETS[target][1]("cpu", "cpu", small=True)()


def test_plans_have_every_workload_and_kernel_family():
    names = [part.name for part in PLAN]
    assert names[0] == "encoder B=2 fused_ms_deform_attn bf16" and len(set(names)) == len(names)
    timed = {(part.arguments["case"].id, part.arguments["dtype"]) for part in PLAN if "op" in part.arguments}
    assert {(case.id, dtype) for case in suite.WORKLOADS.values() for dtype in ("bf16", "fp32")} <= timed
    families = {"racecheck of tiles", "attention large fp32", "attention small bf16", "attention tiles bf16"}
    assert families | {"Triton matching", "deterministic bf16", "CUDA graph"} <= {part.name for part in checks("cuda")}


def test_the_summary_has_ratios_of_our_fastest_kernel_and_names_what_failed():
    ms = {"reference": 20.0, "cuda": 0.1, "triton": 0.4, "original": 0.5}
    document = {"machine": FACTS | {"short": False, "uncommitted_changes": False}, "parts": {}}
    for part in PLAN:
        rows = [
            {"kind": "speed", "implementation": name, "dtype": "bf16", "ours": name != "original"}
            | {"pass": which, "mode": mode, "median_ms": time * factor}
            for name, time in ms.items()
            for which in PASSES
            for mode, factor in (("call", 1.0), ("graph", 1.0 if name == "cuda" else 0.5))
        ]
        document["parts"][part.name] = new_record() | {"status": "done", "rows": rows}
    found = {row["target"]: (row["per call"], row["in a graph"], row["verdict"]) for row in targets(document)}
    assert found["encoder B=2 fp32 fwd: x original"] == (5.0, 2.5, "met")
    assert found["encoder B=2 bf16 fwd+bwd: x original"] == (5.0, 2.5, "met per call only")
    assert found["encoder B=2 bf16 fwd: x deformops"] == (None, None, "not measured")
    document["targets"], names = targets(document), [part.name for part in PLAN]
    failures = document["parts"][names[0]]["failures"]
    failures |= {f"check mmcv-bf16 {i}": f"RuntimeError: number {i} " + 500 * "x" for i in range(50)}
    assert not suite.failed(document), "a peer's failure does not count"
    failures["graph forward cuda-bf16"] = "planted"
    assert suite.failed(document)
    del document["parts"][names[-2]]
    text = summary(document, names)
    assert len(text) <= LONGEST and "number 0" in text and f"no time for ({names[-2]})" in text


def test_gpu_tests_of_cuda_come_first_and_triton_has_two_variants_of_each(run_python):
    options = ["--gpu", "--collect-only", "-q", "tests/cuda/test_matching.py", "tests/gpu"]
    program = f"import os, pytest; assert pytest.main({options}) == 0; print(os.environ['DINO_KERNELS_TRITON_TUNE'])"
    printed = run_python(program, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1").splitlines()
    ids = [line for line in printed if re.match(r"tests/\S+\.py::", line)]
    backends = ["cuda" if "cuda" in line.partition("[")[2] else "triton" for line in ids]
    assert [name for name, _ in groupby(backends)] == ["cuda", "triton"] and printed[-1] == "0"
    by_triton = [line.partition("[")[0] for line in ids[backends.index("triton") :]]
    assert ids[0].startswith("tests/gpu/") and max(map(by_triton.count, set(by_triton))) <= 2
