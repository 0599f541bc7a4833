"""Options, backend fixtures, and the list of what was skipped and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import dino_kernels
from dino_kernels import UnsupportedError
from dino_kernels._dispatch import ops
from dino_kernels.testing import DTYPES, Case, sample_inputs
from tests.emulation import backend as emulation

# The CUDA kernels twice: on a GPU, and compiled for the CPU.
KERNELS = ("cpu", "triton", "cuda", "emulated")
# A library that did not build fails the tests, except where somebody says that he knows.
ALLOW_MISSING = os.environ.get("DINO_KERNELS_ALLOW_MISSING") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dino_kernels")
    group.addoption("--fuzz", type=int, default=200, metavar="N", help="random cases of each fuzz test (200)")
    group.addoption("--large", action="store_true", help="tensors of more than 2^31 elements (about 12 GB)")
    group.addoption("--gpu", action="store_true", help="only tests with a parameter that is 'cuda' or 'triton'")


def pytest_configure(config: pytest.Config) -> None:
    if "libasan" in os.environ.get("LD_PRELOAD", "") and not emulation.SANITIZED:
        raise pytest.UsageError(
            f"a sanitizer is loaded, but the tests would import {dino_kernels.__file__} without one"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --gpu, a machine with a GPU runs what no other machine can, and nothing else."""
    if not config.getoption("--gpu"):
        return

    def touches_the_gpu(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        values = [value for value in callspec.params.values() if isinstance(value, str)] if callspec else []
        return "cuda" in values or "triton" in values

    config.hook.pytest_deselected(items=[item for item in items if not touches_the_gpu(item)])
    items[:] = [item for item in items if touches_the_gpu(item)]


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
    """Every backend that is a kernel of our own."""
    return request.param


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture
def add_emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Adds the backend "emulated" to the ops until the test ends; "auto" never takes it.

    Threads take turns at random, so that sums come in another order with every call, as on a GPU.
    """
    with ExitStack() as until_the_end:

        def add() -> None:
            for op, module in emulation.modules().items():
                monkeypatch.setitem(ops()[op].modules, emulation.NAME, module)
            until_the_end.enter_context(emulation.schedule(1))

        yield add


@pytest.fixture
def make_inputs(add_emulated: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """`sample_inputs` on the device of a backend; skips the test where the backend cannot run the call."""

    def make(op: str, case: Case, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Any]:
        if backend == emulation.NAME:
            add_emulated()
        on_gpu = backend in ("triton", "cuda") and torch.cuda.is_available()
        inputs = sample_inputs(op, case, dtype, "cuda" if on_gpu else "cpu", **options)
        reason = ops()[op].unsupported(backend, ops()[op].prepare(**inputs))
        if reason is not None:
            if backend in ("cpu", emulation.NAME) and not ALLOW_MISSING:
                pytest.fail(f"{op}: the {backend} backend must run every call: {reason}")
            pytest.skip(f"{backend}: {reason}")
        return inputs

    return make


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a program in a new Python that finds the same packages; returns what it printed."""

    def run(program: str, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-P", "-c", program, *arguments]
        found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **found, **environment})
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Puts the number of threads back after a test that changes it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Deterministic algorithms, which also fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Green on a CPU must not pass for green: list each reason with the number of tests it skipped."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("not tested here, and why")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:6} {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A backend that refuses a call for a reason it did not announce is an error, never a skip."""
    try:
        return (yield)
    except UnsupportedError as error:
        raise AssertionError(f"{item.name}: refused a call that unsupported() admits: {error}") from error
