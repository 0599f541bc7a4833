"""Options, fixtures of backends, and the list of what was skipped and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import dino_kernels
from dino_kernels import UnsupportedError
from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing import DTYPES, Case, MatchingCase, matching_inputs, sample_inputs
from tests import lanes, selection
from tests.cuda.emulation import backend as emulation
from tests.selection import INTERPRETED

# The CUDA kernels twice: on a GPU, and compiled for the CPU.
KERNELS = ("cpu", "triton", "cuda", emulation.NAME)
# The Triton kernels twice, too.
ALL_KERNELS = (*KERNELS, INTERPRETED)
MATCHING_OPS = ("matching_cost", "linear_sum_assignment", "hungarian_match")
# Values of PyTorch's own ATEN_CPU_CAPABILITY, narrowest first, and the kernels' names of them.
CAPABILITIES = {"default": "plain", "avx2": "avx2", "avx512": "avx512"}
# A library that did not build fails the tests, unless this acknowledges it.
ALLOW_MISSING = os.environ.get("DINO_KERNELS_ALLOW_MISSING") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dino_kernels")
    group.addoption("--fuzz", type=int, default=200, metavar="N", help="random cases of each fuzz test (200)")
    group.addoption("--large", action="store_true", help="tensors of more than 2^31 elements (about 12 GB)")
    group.addoption(
        "--gpu",
        action="store_true",
        help="only tests with a parameter 'cuda' or 'triton', the important ones first; a few variants of each test by "
        "Triton, which compile for seconds, unless --fuzz is above 200",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(lanes.LaneTimes())
    os.environ.pop("PYTEST_ADDOPTS", None)  # for this pytest, not for those that tests start
    # Most tests need one configuration of a Triton kernel; tests/triton/test_ms_deform_attn.py has all.
    os.environ.setdefault("DINO_KERNELS_TRITON_TUNE", "0")
    if "libasan" in os.environ.get("LD_PRELOAD", "") and not emulation.SANITIZED:
        raise pytest.UsageError(
            f"a sanitizer is loaded, but the tests would import {dino_kernels.__file__} without one"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = selection.select(items, gpu=bool(config.getoption("--gpu")), everything=_everything(config))
    if not config.getoption("--gpu"):
        chosen.sort(key=lambda item: lanes.lane_of(item.nodeid) == lanes.SLOW)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def _everything(config: pytest.Config) -> bool:
    return int(config.getoption("--fuzz") or 1) > 200


@pytest.fixture
def everything(pytestconfig: pytest.Config) -> bool:
    """Whether a long run was asked for, which leaves nothing out."""
    return _everything(pytestconfig)


@pytest.fixture(params=("ms_deform_attn", "fused_ms_deform_attn"))
def op(request: pytest.FixtureRequest) -> str:
    """The name of a public function."""
    return request.param


@pytest.fixture(params=("reference", *KERNELS))
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend, the reference included."""
    return request.param


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    """Every backend but the reference."""
    return request.param


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture
def add_emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Add the backend "emulated" to the ops until the test ends; "auto" never takes it.

    Threads run in random order, so that the order of sums changes with every call, as on a GPU.
    """
    with ExitStack() as until_the_end:

        def add() -> None:
            for op, module in emulation.modules().items():
                monkeypatch.setitem(ops()[op].modules, emulation.NAME, module)
            until_the_end.enter_context(emulation.schedule(1))

        yield add


@pytest.fixture
def add_interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Add the backend "interpreted" to the ops until the test ends; "auto" never takes it."""

    def add() -> None:
        if find_spec("triton") is None:
            pytest.skip("interpreted: triton is not installed")
        from tests.triton import interpreter

        for op, module in interpreter.modules().items():
            monkeypatch.setitem(ops()[op].modules, INTERPRETED, module)

    return add


@pytest.fixture
def require(
    add_emulated: Callable[[], None], add_interpreted: Callable[[], None]
) -> Callable[[str, str, dict[str, Any]], None]:
    """Make a backend of an op ready; skip the test if the backend cannot run the call."""

    def require(op: str, backend: str, inputs: dict[str, Any]) -> None:
        if backend == emulation.NAME:
            add_emulated()
        if backend == INTERPRETED:
            add_interpreted()
        reason = ops()[op].unsupported(backend, ops()[op].prepare(**inputs))
        if reason is not None:
            if backend in ("cpu", emulation.NAME, INTERPRETED) and not ALLOW_MISSING:
                pytest.fail(f"{op}: the {backend} backend must run every call: {reason}")
            pytest.skip(f"{backend}: {reason}")

    return require


@pytest.fixture
def make_inputs(require: Callable[[str, str, dict[str, Any]], None]) -> Callable[..., dict[str, Any]]:
    """`sample_inputs` on the device of a backend; skips the test if the backend cannot run the call."""

    def make(op: str, case: Case, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Any]:
        inputs = sample_inputs(op, case, dtype, device_of(backend), **options)
        require(op, backend, inputs)
        return inputs

    return make


@pytest.fixture
def require_matching(require: Callable[[str, str, dict[str, Any]], None]) -> Callable[[str], None]:
    """Make a backend of the matching ops ready; skip the test if it cannot run them."""

    def require_all(backend: str) -> None:
        for op in MATCHING_OPS:
            require(op, backend, _small_call(op, device_of(backend)))

    return require_all


def device_of(backend: str) -> str:
    """Return the device of a backend's tensors."""
    return "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"


def _small_call(op: str, device: str) -> dict[str, Any]:
    if op == "linear_sum_assignment":
        return {"cost": torch.zeros(1, 2, 3, device=device)}
    return matching_inputs(MatchingCase("probe", 1, 3, 2, (2,)), device=device)


@pytest.fixture(params=ALL_KERNELS)
def matching_kernel(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """Every backend of the matching ops but the reference."""
    require_matching(request.param)
    return request.param


@pytest.fixture(params=("reference", *ALL_KERNELS))
def matching_backend(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """Every backend of the matching ops, the reference included."""
    require_matching(request.param)
    return request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device of the tensors of the test's matching backend."""
    (name,) = {"matching_kernel", "matching_backend"} & set(request.fixturenames)
    return device_of(request.getfixturevalue(name))


@pytest.fixture
def cpu_kernel(require_matching: Callable[[str], None]) -> str:
    """The CPU backend of the matching ops, for what concerns no other."""
    require_matching("cpu")
    return "cpu"


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """Call it after a warm-up: synchronising with the device is an error from then on, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run a program in a new Python that finds the same packages; return its output."""

    def run(program: str, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-P", "-c", program, *arguments]
        found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **found, **environment})
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


@pytest.fixture
def run_nvcc(tmp_path: Path) -> Callable[..., None]:
    """Run the CUDA compiler of the build in an empty folder; skip the test without one."""
    nvcc = next((found for found in ("nvcc", "/usr/local/cuda/bin/nvcc") if shutil.which(found)), None)
    if nvcc is None:
        pytest.skip("nvcc was not found")

    def run(*arguments: str) -> None:
        finished = subprocess.run([nvcc, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr

    return run


@pytest.fixture(params=CAPABILITIES)
def run_at_capability(request: pytest.FixtureRequest, run_python: Callable[..., str]) -> Callable[[str], list[str]]:
    """Run a program with the CPU kernels of another instruction set of this processor; return its `failed`.

    The program prints JSON with `capability`, the name of the kernels' instruction set, and `failed`.
    """
    assert libraries.C is not None
    widest, requested = libraries.C.cpu_capability(), request.param
    if list(CAPABILITIES).index(requested) > list(CAPABILITIES.values()).index(widest):
        pytest.skip(f"this processor has no {requested}")
    if CAPABILITIES[requested] == widest:
        pytest.skip(f"every other test runs on {widest} here")

    def run(program: str) -> list[str]:
        result = json.loads(run_python(program, ATEN_CPU_CAPABILITY=requested))
        assert result["capability"] == CAPABILITIES[requested], "ATEN_CPU_CAPABILITY must choose the kernels"
        return result["failed"]

    return run


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Restore the number of threads after a test that changes it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, which also fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List each reason with the number of tests it skipped: green on a CPU shows nothing about a GPU."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    terminalreporter.section("not tested here, and why")
    if not torch.cuda.is_available():
        terminalreporter.line("   all variants on a GPU (cuda, triton): PyTorch finds none")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:6} {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test whose backend refuses a call that its `unsupported()` admits."""
    try:
        return (yield)
    except UnsupportedError as error:
        raise AssertionError(f"{item.name}: refused a call that unsupported() admits: {error}") from error
