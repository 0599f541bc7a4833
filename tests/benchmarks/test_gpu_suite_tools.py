"""Stopwatches, inputs, tools and candidates of the GPU suite, as far as a machine without a GPU can show them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.attention import candidates, gate, peers
from benchmarks.attention.workloads import OPS, RF_DETR, miniature
from benchmarks.gpu import candidates as gpu_candidates
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import profile_target, suite
from benchmarks.gpu import tools as gpu_tools
from benchmarks.gpu.isolated import Reporter, new_record
from benchmarks.gpu.table import COUNTERS_PART, RED_PART, summary, targets
from benchmarks.measure import race, tools
from dino_kernels.ops._core import libraries
from dino_kernels.testing import DTYPES, attention, sample_inputs

# Stopwatches.


class FakeGpu:
    """Does what it is told at a time of its own, in seconds; the host's time passes with calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.gpu = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"L2_cache_size": 4096}))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.work("sleep", cycles / 1e9))
        zeros, empty = torch.zeros, torch.empty
        monkeypatch.setattr(race.torch, "zeros", lambda *size, device, **rest: zeros(*size, **rest))
        monkeypatch.setattr(race.torch, "empty", lambda *size, device, **rest: empty(*size, **rest))
        add_up = torch.sum

        def read(tensor, dim, out):
            assert tensor.nbytes > 4096, "the L2 cache holds all that is read"
            self.work("read", 1e-5)
            return add_up(tensor, dim=dim, out=out)

        monkeypatch.setattr(race.torch, "sum", read)

    def work(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.gpu = max(self.gpu, self.host) + seconds

    def call(self, host: float, gpu: float) -> None:
        self.host += host
        self.work("call", gpu)

    def wait(self) -> None:
        self.host = max(self.host, self.gpu)

    def event(self, enable_timing: bool) -> Any:
        fake = self

        class Event:
            def record(self) -> None:
                self.time = max(fake.gpu, fake.host)

            def query(self) -> bool:
                return self.time <= fake.host

            def synchronize(self) -> None:
                fake.wait()

            def elapsed_time(self, end: Any) -> float:
                return 1e3 * (end.time - self.time)

        return Event()


def test_the_l2_cache_is_read_and_not_written_before_a_call(monkeypatch):
    fake = FakeGpu(monkeypatch)
    stopwatch = race.CudaStopwatch()
    before = stopwatch.flush.clone()
    assert stopwatch(lambda: fake.call(1e-3, 2e-4)) == pytest.approx(1e-3 - 1e-5 + 2e-4), "with the host's time"
    assert fake.log == ["read", "call"] and torch.equal(stopwatch.flush, before)


def test_a_kernel_stopwatch_sleeps_until_all_is_enqueued(monkeypatch):
    fake = FakeGpu(monkeypatch)
    stopwatch = race.KernelStopwatch()
    assert stopwatch.cycles_per_s == pytest.approx(1e9)
    fake.log.clear()
    assert stopwatch(lambda: fake.call(1e-3, 2e-4)) == pytest.approx(2e-4), "without the host's"
    # 0.2, 0.4 and 0.8 ms are shorter than what the host needs.
    assert fake.log == ["sleep", "read", "call"] * 4
    fake.log.clear()
    assert stopwatch(lambda: fake.call(1e-3, 3e-4)) == pytest.approx(3e-4)
    assert fake.log == ["sleep", "read", "call"], "the next call sleeps long enough at once"


def test_a_call_that_waits_for_the_gpu_has_no_time_without_launches(monkeypatch):
    fake = FakeGpu(monkeypatch)
    stopwatch = race.KernelStopwatch()
    usual = stopwatch.sleep_s

    def call() -> None:
        fake.call(1e-5, 1e-5)
        fake.wait()

    with pytest.raises(RuntimeError, match="the call waits for the GPU"):
        stopwatch(call)
    assert stopwatch.sleep_s == usual, "others need not sleep longer for it"


# Inputs.


class CpuGenerator(torch.Generator):
    """Of any device, as a machine without it can have one."""

    def __new__(cls, device: str = "cpu"):
        return super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("workload", ["encoder B=1", "decoder Q=900", "RT-DETR"])
def test_all_of_a_workload_is_drawn_on_its_device(monkeypatch, op, workload):
    """Tensors of "meta" mix with no other device's, like a GPU's, and have no numbers to look at."""
    close = iter([True, True, False])
    monkeypatch.setattr(torch, "Generator", CpuGenerator)
    monkeypatch.setattr(torch.Tensor, "any", lambda self: next(close))
    case, draw = suite.WORKLOADS[workload], attention._drawn

    def draw_there(*arguments: Any) -> dict[str, Any]:
        inputs = draw(*arguments)
        assert {tensor.device.type for tensor in inputs.values() if isinstance(tensor, torch.Tensor)} == {"meta"}
        return inputs

    monkeypatch.setattr(attention, "_drawn", draw_there)
    inputs = gate.training_inputs(op, case, "bf16", "meta")
    tensors = [tensor for tensor in inputs.values() if isinstance(tensor, torch.Tensor)]
    tensors.append(gate.output_gradient(case, "bf16", "meta"))
    assert {tensor.device.type for tensor in tensors} == {"meta"} and not list(close)
    assert tensors[-1].shape == (case.batch, case.queries, case.heads * case.channels)


@pytest.mark.parametrize("op", OPS)
def test_what_is_timed_has_the_numbers_of_the_tests(op):
    case = miniature(RF_DETR)
    timed, tested = gate.training_inputs(op, case, "bf16", "cpu"), sample_inputs(op, case, DTYPES["bf16"])
    for name, tensor in tested.items():
        assert not isinstance(tensor, torch.Tensor) or torch.equal(timed[name], tensor)
    gradients = [gate.output_gradient(case, dtype, "cpu") for dtype in ("fp64", "bf16")]
    assert torch.equal(gradients[0].bfloat16(), gradients[1])


# Tools.


def test_a_tool_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    file = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(file)!r}).touch(); time.sleep(0.02)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(100)"
    with pytest.raises(RuntimeError, match="took longer than 1 s"):
        tools.run([sys.executable, "-c", program], 1.0)
    assert file.exists()
    file.unlink()
    time.sleep(0.2)
    assert not file.exists(), "the child lives on"


def test_a_tool_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"exit code 3: out\nwhy"):
        tools.run([sys.executable, "-c", "import sys; print('out'); sys.stderr.write('why'); sys.exit(3)"], 60.0)
    assert tools.run([sys.executable, "-c", "import os; print(os.environ['X'])"], 60.0, {"X": "set"}) == "set\n"


CSV = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Block Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","void fill<float>(T *)","(1, 1, 1)","Command line profiler metrics","gpu__time_duration.sum","ns","9,000"
"1","1","backward_kernel","(1, 1, 1)","Command line profiler metrics","gpu__time_duration.sum","nsecond","240,500"
"1","1","backward_kernel","(1, 1, 1)","Command line profiler metrics","smsp__inst_executed.sum","inst","1,234,567"
"1","1","backward_kernel","(1, 1, 1)","Command line profiler metrics","lts__t_sectors_op_red.sum","sector","n/a"
"""


def test_counters_are_read_from_what_nsight_compute_prints():
    first, second = gpu_tools.parse(CSV)
    assert first["kernel"] == "void fill<float>(T *)" and first["microseconds"] == 9.0 and first["instructions"] is None
    assert (second["microseconds"], second["instructions"], second["l2_red_sectors"]) == (240.5, 1234567.0, None)
    assert second.keys() == {"kernel", *gpu_tools.METRICS}
    with pytest.raises(RuntimeError, match="profiled no kernel: ==PROF== nothing"):
        gpu_tools.parse("==PROF== nothing")


@pytest.mark.parametrize("target", profile_target.TARGETS)
def test_every_profiled_call_runs(target):
    _, make = profile_target.TARGETS[target]
    call = make("cpu", "cpu", small=True)
    call()
    call()


@pytest.mark.parametrize("measure", [gpu_tools.red_rate, gpu_tools.nsight_compute])
def test_tools_that_need_a_gpu_say_so(measure):
    events: list[tuple] = []
    measure(Reporter(events.append, new_record()), "cpu")
    assert [(event, reason) for event, _, reason in events] == [("not_run", "it needs a CUDA device; this is cpu")]


def cuobjdump() -> str | None:
    spec = find_spec("triton")
    folders = spec.submodule_search_locations or [] if spec else []
    paths = [str(Path(folder) / "backends/nvidia/bin/cuobjdump") for folder in folders]
    return next((path for path in paths if os.access(path, os.X_OK)), shutil.which("cuobjdump"))


@pytest.mark.skipif(tools.find("nvcc") is None or cuobjdump() is None, reason="nvcc or cuobjdump is not installed")
def test_the_rate_is_that_of_the_instructions_it_names(tmp_path):
    nvcc, dump = tools.find("nvcc"), cuobjdump()
    assert nvcc is not None and dump is not None
    program = gpu_tools.compile_red_rate(nvcc, "90", tmp_path)
    listing = tools.run([dump, "-sass", str(program)], 60.0)
    found = {}
    for part in listing.split("Function : ")[1:]:
        (pattern,) = re.findall(r"FullSectors|HalfSectors|Scalars", part.partition("\n")[0])
        found[pattern] = set(re.findall(r"RED\w*\.E\.ADD\.F32(?:x4)?\b", part))
    vector, scalar = {"REDG.E.ADD.F32x4"}, {"REDG.E.ADD.F32"}
    assert found == {"FullSectors": vector, "HalfSectors": vector, "Scalars": scalar}
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA device"):
            tools.run([str(program)], 60.0)


# Candidates.


@contextmanager
def chosen_into(log: list[str], name: str):
    log.append(name)
    yield
    log.append(f"end of {name}")


def test_candidates_are_those_of_the_library(monkeypatch):
    monkeypatch.delattr(libraries, "CANDIDATES", raising=False)
    assert candidates.candidates() == []
    monkeypatch.setattr(libraries, "CANDIDATES", {"backward": ("scatter", "tile"), "forward": ("mma",)}, raising=False)
    assert [c.id for c in candidates.candidates()] == ["forward mma", "backward scatter", "backward tile"]
    monkeypatch.setattr(libraries, "CANDIDATES", {"sideways": ("x",)})
    with pytest.raises(ValueError, match=r"directions \['sideways'\], allowed are"):
        candidates.candidates()


def test_each_candidate_is_checked_and_timed_while_it_is_chosen(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(libraries, "CANDIDATES", {"backward": ("scatter", "tile"), "forward": ("mma",)}, raising=False)
    monkeypatch.setattr(libraries, "choose_candidate", lambda name: chosen_into(log, name), raising=False)
    events: list[tuple] = []
    case = miniature(RF_DETR)
    gpu_candidates.speed(Reporter(events.append, new_record()), OPS[1], case, "bf16", "cpu", 0.0, 2)
    assert not [event for event in events if event[0] in ("failed", "not_run")]
    rows = [row for event in events if event[0] == "finished" and isinstance(event[2], list) for row in event[2]]
    measured = {(row["direction"], row["candidate"], row["pass"], row["mode"]) for row in rows}
    both = "forward+backward"
    assert measured == {
        ("forward", "mma", "forward", "call"),
        ("backward", "scatter", both, "call"),
        ("backward", "tile", both, "call"),
    }
    # Chosen for its check and each turn, and never beside another.
    names = [name for name in log if not name.startswith("end of ")]
    assert log == [entry for name in names for entry in (name, f"end of {name}")]
    assert all(names.count(name) >= 4 for name in ("mma", "scatter", "tile"))


def test_without_candidates_the_part_says_so(monkeypatch):
    monkeypatch.delattr(libraries, "CANDIDATES", raising=False)
    events: list[tuple] = []
    gpu_candidates.speed(Reporter(events.append, new_record()), OPS[1], miniature(RF_DETR), "bf16", "cpu", 0.0, 2)
    assert events == [("not_run", "candidates", "the CUDA library has one kernel for each call")]


# Contestants.


@pytest.mark.parametrize("op", OPS)
def test_the_compiled_reference_is_one_graph_and_computes_the_reference(op):
    """By a compiler that makes no code; inductor's is left to a GPU."""
    compiled, reference = peers.compiled_reference("aot_eager"), peers.implementations()["reference"]
    inputs = gate.training_inputs(op, miniature(suite.WORKLOADS["encoder B=1"]), "bf16", "cpu")
    result, expected = (gate.forward_backward(each, op, inputs) for each in (compiled, reference))
    for name, wanted in expected.named().items():
        torch.testing.assert_close(result.named()[name], wanted, rtol=2e-2, atol=2e-2)
    assert peers.compiled_reference().unsupported(op, inputs) == "compiled for a GPU only"


def test_peers_are_downloaded_for_another_python_and_unpacked_without_a_network(tmp_path):
    download, unpack = gpu_peers.commands("3.12", ("deformops==3.0.1",), tmp_path)
    for command in (download, unpack):
        assert {"--python-version=3.12", "--abi=cp312", "--no-deps", "--only-binary=:all:"} <= set(command)
        assert command[-1] == "deformops==3.0.1"
    assert f"--dest={tmp_path / 'wheels'}" in download
    assert {"--no-index", f"--find-links={tmp_path / 'wheels'}", f"--target={tmp_path / 'site'}"} <= set(unpack)


# The summary.


def test_the_summary_shows_candidates_rates_and_counters():
    facts = dict.fromkeys(("gpu", "torch", "triton", "commit", "date", "sources"), "x")
    facts |= {"uncommitted_changes": False, "short": False}
    row = {"kind": "candidate", "direction": "backward", "mode": "graph", "candidate": "tile", "median_ms": 0.25}
    rate = {"kind": "red", "pattern": "v4, full sectors", "rows": "an image's", "rows_per_s": 1.5e10}
    counters = {"kind": "counters", "target": "backward", "kernel": "void backward_kernel<float, 4>(Params)"}
    counters |= dict.fromkeys(gpu_tools.METRICS, 12.5) | {"l1_hit_pct": None}
    parts = {"candidates x": [row], RED_PART: [rate], COUNTERS_PART: [counters]}
    document: dict[str, Any] = {"machine": facts, "targets": []}
    document["parts"] = {name: new_record() | {"status": "done", "rows": rows} for name, rows in parts.items()}
    document["targets"] = targets(document)
    text = summary(document, list(parts))
    assert "candidates x, ms: backward tile 0.25 graph" in text
    assert "rows of 128 B added in L2, 10^9 a second: v4, full sectors on an image's rows 15" in text
    assert re.search(r"backward +backward_kernel +12\.5 .* - ", text)
