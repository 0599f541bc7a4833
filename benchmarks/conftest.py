"""Options, what takes part, and the summary at the end of a run."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.attention.memory import unsupported as memory_unsupported
from benchmarks.attention.peers import BACKENDS, implementations
from benchmarks.attention.stage import PASSES, Contestant, Outcome, contestants, measure
from benchmarks.attention.workloads import DEFAULT, FULL, OPS, SHORT, Effort
from benchmarks.matching.peers import MatchingInputs, matchers
from benchmarks.matching.stage import MatchingOutcome
from benchmarks.matching.stage import measure as measure_matching
from benchmarks.matching.workloads import EFFORTS, MatchingEffort, MatchingStep
from benchmarks.measure import plot, report
from benchmarks.measure.machine import slug
from benchmarks.measure.results import FILE_NAME, LATEST, RESULTS, Results
from dino_kernels.testing import DTYPES, Case, sample_inputs

EFFORT = pytest.StashKey[Effort]()
DEVICE = pytest.StashKey[str]()
RESULTS_KEY = pytest.StashKey[Results]()
# Any call will do to ask who is installed.
SMALL_CALL = Case("small", 1, 5, 2, 8, ((4, 6), (2, 3)), (4, 4))
SMALL_STEP = MatchingStep(2, "random", 1, sets=1, queries=4, classes=3)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dino_kernels benchmarks")
    group.addoption("--full", action="store_true", help="all sizes, batches and dtypes (long)")
    group.addoption("--short", action="store_true", help="small sizes and few rounds, for CI")
    group.addoption("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    group.addoption("--results", type=Path, help="JSON to write (default: benchmarks/results/latest, not in git)")
    group.addoption("--publish", action="store_true", help="write to benchmarks/results/<machine>, for the READMEs")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full") and config.getoption("--short"):
        raise pytest.UsageError("--full and --short exclude each other")
    if config.getoption("--publish") and (config.getoption("--results") or config.getoption("-k")):
        raise pytest.UsageError("--publish chooses the path itself and takes whole runs only: no --results, no -k")
    config.stash[EFFORT] = FULL if config.getoption("--full") else SHORT if config.getoption("--short") else DEFAULT
    config.stash[DEVICE] = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    config.stash[RESULTS_KEY] = Results(config.stash[EFFORT].name, config.stash[DEVICE])
    # The summary says the same in fewer lines; --benchmark-verbose still shows pytest-benchmark's own tables.
    config.option.benchmark_quiet = True


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """pytest-benchmark's own files need not name the host."""
    machine_info.pop("node", None)


def takes_part(config: pytest.Config, names: list[str], dtypes: tuple[str, ...]) -> list[Contestant]:
    """Contestants that can run here at all; the others are listed at the end with their reason."""
    known, present, device = implementations(), [], config.stash[DEVICE]
    for contestant in contestants(names, dtypes):
        inputs = sample_inputs(OPS[0], SMALL_CALL, DTYPES[contestant.dtype], device, requires_grad=False)
        implementation = known[contestant.implementation]
        reason = implementation.unsupported(OPS[0], inputs)
        slow = device == "cpu" and contestant.dtype in ("bf16", "fp16") and not implementation.ours
        if reason is None and slow and config.stash[EFFORT] is not FULL:
            reason = "on a CPU, peers are slower in 16 bit than in float32; timed with --full"
        if reason is None:
            present.append(contestant)
        else:
            config.stash[RESULTS_KEY].document["not_run"][contestant.id] = reason
    return present


def matching_line_up(config: pytest.Config, op: str) -> list[str]:
    """Names of those who can do this job of matching at all; the others are listed at the end with their reason."""
    refusals = matching_refusals(op, config.stash[DEVICE])
    for name, reason in refusals.items():
        if reason is not None:
            config.stash[RESULTS_KEY].document["not_run"][f"{name} {op}"] = reason
    return [name for name, reason in refusals.items() if reason is None]


@functools.cache
def matching_refusals(op: str, device: str) -> dict[str, str | None]:
    """By name of everyone who has the op: why it cannot run, or None."""
    inputs = MatchingInputs(SMALL_STEP, device)
    return {name: matcher.unsupported(op, inputs) for name, matcher in matchers().items() if op in matcher.ops}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config, function = metafunc.config, metafunc.function.__name__
    effort = config.stash[EFFORT]
    if function == "test_speed":
        everyone = takes_part(config, list(implementations()), effort.dtypes)
        values = [
            pytest.param(op, case, which, contestant, id=f"{case.id}-{op}-{which}-{contestant.id}")
            for op, case in effort.calls
            for which in PASSES
            for contestant in everyone
        ]
        metafunc.parametrize(("op", "case", "which", "contestant"), values)
    elif function == "test_memory":
        everyone = takes_part(config, list(implementations()), effort.dtypes)
        if effort is not FULL:
            everyone = [c for c in everyone if c.dtype == "fp32" or c.implementation in BACKENDS]
        values = [
            pytest.param(op, case, contestant, id=f"{case.id}-{op}-{contestant.id}")
            for op, case in effort.memory
            for contestant in everyone
        ]
        metafunc.parametrize(("op", "case", "contestant"), values)
    elif function == "test_growth":
        values = [
            pytest.param(series, x, case, id=f"{series.name}-{x}")
            for series in effort.growth
            for x, case in series.cases
        ]
        metafunc.parametrize(("series", "x", "case"), values)
    elif function == "test_matching":
        values = [
            pytest.param(op, step, name, id=f"{step.id}-{op}-{name}")
            for op, step in EFFORTS[effort.name].calls
            for name in matching_line_up(config, op)
        ]
        metafunc.parametrize(("op", "step", "name"), values)
    elif function == "test_matching_growth":
        values = [
            pytest.param(series, x, step, id=f"{series.name}-{x}")
            for series in EFFORTS[effort.name].growth
            for x, step in series.steps
        ]
        metafunc.parametrize(("series", "x", "step"), values)


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
    """The race of one op and workload, run when its first test asks and kept for the tests that follow."""
    everyone = takes_part(pytestconfig, list(implementations()), effort.dtypes)

    @functools.lru_cache(maxsize=1)
    def outcome(op: str, case: Case) -> Outcome:
        return measure(op, case, everyone, effort, device)

    return outcome


@pytest.fixture(scope="session")
def our_contestants(pytestconfig: pytest.Config) -> list[Contestant]:
    """The reference and this package's kernels, in float32."""
    return takes_part(pytestconfig, list(BACKENDS), ("fp32",))


@pytest.fixture(scope="session")
def matching_effort(effort: Effort) -> MatchingEffort:
    return EFFORTS[effort.name]


@pytest.fixture(scope="session")
def matching_names(pytestconfig: pytest.Config) -> Callable[[str], list[str]]:
    return functools.partial(matching_line_up, pytestconfig)


@pytest.fixture(scope="session")
def matching_outcome_of(
    pytestconfig: pytest.Config, matching_effort: MatchingEffort, device: str
) -> Callable[[str, MatchingStep], MatchingOutcome]:
    """The race of one op and step, run when its first test asks and kept for the tests that follow."""
    inputs_of = functools.lru_cache(maxsize=1)(lambda step: MatchingInputs(step, device))
    known = matchers()

    @functools.lru_cache(maxsize=1)
    def outcome(op: str, step: MatchingStep) -> MatchingOutcome:
        everyone = [known[name] for name in matching_line_up(pytestconfig, op)]
        return measure_matching(op, inputs_of(step), everyone, matching_effort, matching_effort.race_s)

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
    results.save(path)
    terminalreporter.section("dino_kernels benchmarks")
    terminalreporter.write_line(report.summary(results.document))
    terminalreporter.write_line(f"\nwritten: {path}")
    pictures = {"growth": plot.growth, "matching_growth": plot.matching_growth}
    for rows, draw in pictures.items():
        if not results.document[rows]:
            continue
        if importlib.util.find_spec("matplotlib") is None:
            terminalreporter.write_line(f"not drawn: {rows}, because matplotlib is not installed")
        else:
            picture = draw(results.document, path.with_name(f"{path.stem}-{rows.replace('_', '-')}.png"))
            terminalreporter.write_line(f"written: {picture}")
