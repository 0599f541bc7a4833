"""Options, backend fixtures, and the list of what was skipped and why."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
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
from tests.cuda.emulation import backend as emulation

# The CUDA kernels twice: on a GPU, and compiled for the CPU.
KERNELS = ("cpu", "triton", "cuda", "emulated")
# The Triton kernels twice, too; those of deformable attention in tests/triton/test_ms_deform_attn.py, on smaller cases.
INTERPRETED = "interpreted"
MATCHING_KERNELS = (*KERNELS, INTERPRETED)
# Of emulated CUDA kernels: instantiations of the same templates as bfloat16 and float32.
RARE_DTYPES = ("fp16", "fp64")
FEW_VARIANTS = 2  # of a test, see _shown_often_enough; --fuzz of more than 200 runs all
# Values of PyTorch's own ATEN_CPU_CAPABILITY, narrowest first, and what the kernels call them.
CAPABILITIES = {"default": "plain", "avx2": "avx2", "avx512": "avx512"}
# A library that did not build fails the tests, except where somebody says that he knows.
ALLOW_MISSING = os.environ.get("DINO_KERNELS_ALLOW_MISSING") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dino_kernels")
    group.addoption("--fuzz", type=int, default=200, metavar="N", help="random cases of each fuzz test (200)")
    group.addoption("--large", action="store_true", help="tensors of more than 2^31 elements (about 12 GB)")
    group.addoption(
        "--gpu",
        action="store_true",
        help="only tests with a parameter that is 'cuda' or 'triton', the important ones first; of a test's variants "
        "by Triton, which compile for seconds, a few, unless --fuzz is above 200",
    )


def pytest_configure(config: pytest.Config) -> None:
    # One configuration of a Triton kernel is enough for most tests; tests/triton/test_ms_deform_attn.py has all.
    os.environ.setdefault("DINO_KERNELS_TRITON_TUNE", "0")
    if "libasan" in os.environ.get("LD_PRELOAD", "") and not emulation.SANITIZED:
        raise pytest.UsageError(
            f"a sanitizer is loaded, but the tests would import {dino_kernels.__file__} without one"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests that have nothing new to show."""
    left_out = _shown_often_enough(items) if int(config.getoption("--fuzz") or 1) <= 200 else set()
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    if not config.getoption("--gpu"):
        return

    # A machine with a GPU runs what no other machine can, and nothing else.
    chosen = sorted((item for item in items if _backends_of(item) & {"cuda", "triton"}), key=_rank_on_a_gpu)
    if int(config.getoption("--fuzz") or 1) <= 200:
        chosen = _few_by_triton(chosen)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


# What a GPU shows first, by how paths begin; others come behind these, and what compiles for long last.
GPU_ORDER = ("gpu/test_attention.py", "gpu/", "cuda/")
GPU_LAST = ("ops/contract/test_compile.py", "ops/contract/test_matching_compile.py", "ops/contract/test_opcheck.py")


def _backends_of(item: pytest.Item) -> set[str]:
    callspec = getattr(item, "callspec", None)
    return {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()


def _rank_on_a_gpu(item: pytest.Item) -> tuple[bool, int]:
    """CUDA before Triton; within either, files in the order above."""
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    if name in GPU_LAST:
        rank = len(GPU_ORDER) + 1
    else:
        rank = next((place for place, start in enumerate(GPU_ORDER) if name.startswith(start)), len(GPU_ORDER))
    return "cuda" not in _backends_of(item), rank


def _few_by_triton(items: list[pytest.Item]) -> list[pytest.Item]:
    """All that touch CUDA, and of each test's other variants FEW_VARIANTS."""
    variants: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if "cuda" not in _backends_of(item):
            variants[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, each in variants.items():
        left_out |= set(each) - set(random.Random(name).sample(each, min(FEW_VARIANTS, len(each))))
    return [item for item in items if item not in left_out]


def _shown_often_enough(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of each test's variants that take long and have much in common, all but a few.

    These are the ones on Triton's interpreter, which takes a thousand times as long, and those of emulated CUDA kernels
    in the dtypes that share the code of another.
    """
    variants: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        callspec = getattr(item, "callspec", None)
        values = [v for v in callspec.params.values() if isinstance(v, (str, torch.dtype))] if callspec else []
        rare = [name for name in RARE_DTYPES if name in values or DTYPES[name] in values]
        name = item.nodeid.partition("[")[0]
        if INTERPRETED in values:
            variants[name, INTERPRETED].append(item)
        elif emulation.NAME in values and rare:
            variants[name, rare[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, each in variants.items():
        chosen = random.Random("".join(name)).sample(each, min(FEW_VARIANTS, len(each)))
        left_out |= set(each) - set(chosen)
    return left_out


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
def add_interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Adds the backend "interpreted" to the ops until the test ends; "auto" never takes it."""

    def add() -> None:
        if find_spec("triton") is None:
            pytest.skip("interpreted: triton is not installed")
        from tests.triton import interpreter

        for op, module in interpreter.modules().items():
            monkeypatch.setitem(ops()[op].modules, INTERPRETED, module)

    return add


@pytest.fixture
def make_inputs(add_emulated: Callable[[], None], add_interpreted: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """`sample_inputs` on the device of a backend; skips the test where the backend cannot run the call."""

    def make(op: str, case: Case, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Any]:
        if backend == emulation.NAME:
            add_emulated()
        if backend == INTERPRETED:
            add_interpreted()
        inputs = sample_inputs(op, case, dtype, _device_of(backend), **options)
        reason = ops()[op].unsupported(backend, ops()[op].prepare(**inputs))
        if reason is not None:
            if backend in ("cpu", emulation.NAME, INTERPRETED) and not ALLOW_MISSING:
                pytest.fail(f"{op}: the {backend} backend must run every call: {reason}")
            pytest.skip(f"{backend}: {reason}")
        return inputs

    return make


@pytest.fixture
def require_matching(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Makes a backend of the ops in the test module's OPS ready; skips the test where it cannot run them."""

    def require(backend: str) -> None:
        if backend == emulation.NAME:
            request.getfixturevalue("add_emulated")()
        if backend == INTERPRETED:
            request.getfixturevalue("add_interpreted")()
        for op in request.module.OPS:
            reason = "there is none of this op"
            if backend in ops()[op].modules:
                reason = ops()[op].unsupported(backend, ops()[op].prepare(**_probe(op, _device_of(backend))))
            if reason is not None:
                if backend in ("cpu", emulation.NAME, INTERPRETED) and not ALLOW_MISSING:
                    pytest.fail(f"{op}: the {backend} backend must run every call: {reason}")
                pytest.skip(f"{backend}: {reason}")

    return require


def _device_of(backend: str) -> str:
    return "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"


def _probe(op: str, device: str) -> dict[str, Any]:
    """Arguments of a small call of a matching op."""
    if op == "linear_sum_assignment":
        return {"cost": torch.zeros(1, 2, 3, device=device)}
    return matching_inputs(MatchingCase("probe", 1, 3, 2, (2,)), device=device)


@pytest.fixture(params=MATCHING_KERNELS)
def matching_kernel(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """Every backend of the matching ops that is a kernel of our own."""
    require_matching(request.param)
    return request.param


@pytest.fixture(params=("reference", *MATCHING_KERNELS))
def matching_backend(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """Every backend of the matching ops, the reference included."""
    require_matching(request.param)
    return request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the tensors of the test's matching backend are."""
    (name,) = {"matching_kernel", "matching_backend"} & set(request.fixturenames)
    return _device_of(request.getfixturevalue(name))


@pytest.fixture
def cpu_kernel(require_matching: Callable[[str], None]) -> str:
    """The CPU backend of the matching ops, for what only concerns it."""
    require_matching("cpu")
    return "cpu"


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """Call it after a warm-up; whatever waits for the device then raises, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


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
def run_nvcc(tmp_path: Path) -> Callable[..., None]:
    """Runs the CUDA compiler that the build would take, in a folder of its own; skips the test where there is none."""
    nvcc = next((found for found in ("nvcc", "/usr/local/cuda/bin/nvcc") if shutil.which(found)), None)
    if nvcc is None:
        pytest.skip("nvcc was not found")

    def run(*arguments: str) -> None:
        finished = subprocess.run([nvcc, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr

    return run


@pytest.fixture(params=CAPABILITIES)
def run_at_capability(request: pytest.FixtureRequest, run_python: Callable[..., str]) -> Callable[[str], list[str]]:
    """Runs a program with the CPU kernels of another instruction set that this processor has.

    It prints JSON with `capability`, the kernels' own name of theirs, and `failed`, which is returned.
    """
    assert libraries.C is not None
    widest, wanted = libraries.C.cpu_capability(), request.param
    if list(CAPABILITIES).index(wanted) > list(CAPABILITIES.values()).index(widest):
        pytest.skip(f"this processor has no {wanted}")
    if CAPABILITIES[wanted] == widest:
        pytest.skip(f"{widest} is what every other test runs on here")

    def run(program: str) -> list[str]:
        result = json.loads(run_python(program, ATEN_CPU_CAPABILITY=wanted))
        assert result["capability"] == CAPABILITIES[wanted], "ATEN_CPU_CAPABILITY must choose the kernels"
        return result["failed"]

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
