"""Options, who takes part, and the summary at the end of a run."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.attention.memory import unsupported as memory_unsupported
from benchmarks.attention.peers import BACKENDS
from benchmarks.attention.stage import PASSES, AttentionStage, contestants
from benchmarks.attention.workloads import DEFAULT, FULL, OPS, SHORT, Effort
from benchmarks.matching.peers import MatchingInputs
from benchmarks.matching.stage import MatchingStage
from benchmarks.matching.workloads import EFFORTS, MatchingEffort, MatchingStep
from benchmarks.measure import plot, report
from benchmarks.measure.machine import slug
from benchmarks.measure.results import FILE_NAME, LATEST, RESULTS, Results, write_json
from benchmarks.measure.stage import Contestant, Outcome, measure
from dino_kernels.testing import Case

EFFORT = pytest.StashKey[Effort]()
DEVICE = pytest.StashKey[str]()
RESULTS_KEY = pytest.StashKey[Results]()
# Any call shows who is installed.
SMALL_CALL = Case("small", 1, 5, 2, 8, ((4, 6), (2, 3)), (4, 4))
SMALL_STEP = MatchingStep(2, "random", 1, sets=1, queries=4, classes=3)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dino_kernels benchmarks")
    group.addoption("--full", action="store_true", help="all sizes, batches and dtypes (long)")
    group.addoption("--short", action="store_true", help="small sizes and few rounds, for CI")
    group.addoption("--device", choices=["cpu", "cuda"], help="default: cuda if available")
    group.addoption("--results", type=Path, help="JSON to write (default: benchmarks/results/latest, not in git)")
    group.addoption("--publish", action="store_true", help="write to benchmarks/results/<machine>, for the READMEs")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full") and config.getoption("--short"):
        raise pytest.UsageError("--full and --short exclude each other. Give one of them.")
    if config.getoption("--publish") and (config.getoption("--results") or config.getoption("-k")):
        raise pytest.UsageError("--publish takes whole runs only and chooses the path. Remove --results and -k.")
    config.stash[EFFORT] = FULL if config.getoption("--full") else SHORT if config.getoption("--short") else DEFAULT
    config.stash[DEVICE] = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    config.stash[RESULTS_KEY] = Results(config.stash[EFFORT].name, config.stash[DEVICE])
    # The summary is shorter than pytest-benchmark's own tables, which --benchmark-verbose still shows.
    config.option.benchmark_quiet = True


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Remove the host's name from pytest-benchmark's own files."""
    machine_info.pop("node", None)


def line_up(config: pytest.Config, op: str) -> list[Contestant]:
    """Return those who can run `op` here; the summary lists the others with their reason."""
    effort, device, present = config.stash[EFFORT], config.stash[DEVICE], []
    for contestant, reason in reasons(op, effort.dtypes, device).items():
        slow = device == "cpu" and contestant.dtype in ("bf16", "fp16") and not contestant.ours
        if reason is None and slow and effort is not FULL:
            reason = "on a CPU, peers are slower in 16 bit than in float32; timed with --full"
        if reason is None:
            present.append(contestant)
        else:
            name = contestant.id if op in OPS else f"{contestant.id} {op}"
            config.stash[RESULTS_KEY].document["not_run"][name] = reason
    return present


@functools.cache
def reasons(op: str, dtypes: tuple[str, ...], device: str) -> dict[Contestant, str | None]:
    """Return why each contestant cannot run `op`, or None."""
    if op in OPS:
        stage = AttentionStage(op, SMALL_CALL, device)
        everyone = contestants(stage.known, list(stage.known), dtypes)
    else:
        stage = MatchingStage(op, MatchingInputs(SMALL_STEP, device))
        everyone = stage.contestants()
    return {contestant: stage.unsupported(contestant) for contestant in everyone}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config, effort = metafunc.config, metafunc.config.stash[EFFORT]
    matching = EFFORTS[effort.name]

    def parametrize(names: str, rows: list[tuple[Any, ...]], id_of: Callable[..., str]) -> None:
        metafunc.parametrize(names.split(), [pytest.param(*row, id=id_of(*row)) for row in rows])

    def growth(workload: str, series: list[tuple[Any, tuple[tuple[int, Any], ...]]]) -> None:
        rows = [(one, x, work) for one, points in series for x, work in points]
        parametrize(f"series x {workload}", rows, lambda series, x, _: f"{series.name}-{x}")

    match metafunc.function.__name__:
        case "test_speed":
            rows = [(op, case, p, c) for op, case in effort.calls for p in PASSES for c in line_up(config, OPS[0])]
            parametrize("op case which contestant", rows, lambda op, case, p, c: f"{case.id}-{op}-{p}-{c.id}")
        case "test_memory":
            everyone = line_up(config, OPS[0])
            if effort is not FULL:
                everyone = [c for c in everyone if c.dtype == "fp32" or c.ours]
            rows = [(op, case, contestant) for op, case in effort.memory for contestant in everyone]
            parametrize("op case contestant", rows, lambda op, case, c: f"{case.id}-{op}-{c.id}")
        case "test_growth":
            growth("case", [(series, series.cases) for series in effort.growth])
        case "test_matching":
            rows = [(op, step, c) for op, step in matching.calls for c in line_up(config, op)]
            parametrize("op step contestant", rows, lambda op, step, c: f"{step.id}-{op}-{c.id}")
        case "test_matching_growth":
            growth("step", [(series, series.steps) for series in matching.growth])


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.stash[DEVICE]


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Effort:
    return pytestconfig.stash[EFFORT]


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    return pytestconfig.stash[RESULTS_KEY]


@pytest.fixture(scope="session")
def outcome_of(pytestconfig: pytest.Config, effort: Effort, device: str) -> Callable[[str, Case], Outcome]:
    """The race of one op and workload, run for its first test and kept for the tests that follow."""
    everyone = line_up(pytestconfig, OPS[0])

    @functools.lru_cache(maxsize=1)
    def outcome(op: str, case: Case) -> Outcome:
        return measure(AttentionStage(op, case, device), everyone, effort.race_s, effort.laps)

    return outcome


@pytest.fixture(scope="session")
def our_contestants(pytestconfig: pytest.Config) -> list[Contestant]:
    """The reference and this package's kernels, in float32."""
    return [c for c in line_up(pytestconfig, OPS[0]) if c.implementation in BACKENDS and c.dtype == "fp32"]


@pytest.fixture(scope="session")
def matching_effort(effort: Effort) -> MatchingEffort:
    return EFFORTS[effort.name]


@pytest.fixture(scope="session")
def matching_contestants(pytestconfig: pytest.Config) -> Callable[[str], list[Contestant]]:
    return functools.partial(line_up, pytestconfig)


@pytest.fixture(scope="session")
def matching_outcome_of(
    pytestconfig: pytest.Config, matching_effort: MatchingEffort, device: str
) -> Callable[[str, MatchingStep], Outcome]:
    """The race of one op and step, run for its first test and kept for the tests that follow."""
    effort, inputs_of = matching_effort, functools.lru_cache(maxsize=1)(lambda step: MatchingInputs(step, device))

    @functools.lru_cache(maxsize=1)
    def outcome(op: str, step: MatchingStep) -> Outcome:
        stage = MatchingStage(op, inputs_of(step), effort.slowest_s, effort.most_pairs)
        return measure(stage, line_up(pytestconfig, op), effort.race_s, effort.laps)

    return outcome


@pytest.fixture(scope="session")
def memory_meter(device: str) -> None:
    reason = memory_unsupported(device)
    if reason is not None:
        pytest.skip(reason)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS_KEY]
    if not results.measured:
        return
    path = config.getoption("--results") or RESULTS / LATEST / FILE_NAME
    if config.getoption("--publish"):
        path = RESULTS / slug(results.document["machine"]) / FILE_NAME
    write_json(path, results.document)
    terminalreporter.section("dino_kernels benchmarks")
    terminalreporter.write_line(report.summary(results.document))
    terminalreporter.write_line(f"\nwritten: {path}")
    for rows, draw in {"growth": plot.growth, "matching_growth": plot.matching_growth}.items():
        if not results.document[rows]:
            continue
        if importlib.util.find_spec("matplotlib") is None:
            terminalreporter.write_line(f"not drawn: {rows}, because matplotlib is not installed")
        else:
            image = draw(results.document, path.with_name(f"{path.stem}-{rows.replace('_', '-')}.png"))
            terminalreporter.write_line(f"written: {image}")
