"""Every step of matching costs what SciPy's answer costs, and proves it where it has duals."""

from __future__ import annotations

import pytest
import torch

from dino_kernels.testing import MATCHING_CASES, MatchingCase
from dino_kernels.tutorial import counting
from dino_kernels.tutorial.matching import run, step1_scipy, step5_device
from dino_kernels.tutorial.matching.problem import Matching, Step, step, violation

CASES = [case for case in MATCHING_CASES if case.queries]  # SciPy in DINO's form needs a query
BY_NAME = {case.name: case for case in CASES}


def assert_optimal(this: run.Step, given: Step) -> None:
    found = this.match(given)
    assert abs(run.excess(given, found)) <= run.ALLOWED
    for g, b, cost in given.problems():
        chosen = found.query_idx[g, given.offsets[b] : given.offsets[b + 1]]
        assert len(chosen[chosen >= 0].unique()) == (chosen >= 0).sum() == min(cost.shape)
    if found.target_duals is not None:
        assert violation(given, found) <= 1e-12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("label", run.STEPS)
def test_a_step_is_optimal(label, case):
    assert_optimal(run.STEPS[label], step(case))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("label", [label for label in run.STEPS if "costs too" not in label])
def test_small_integers_with_many_ties(label, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (3,), generator=generator).tolist()
    cost = torch.randint(-2, 3, (2, sum(counts), 6), generator=generator).float()
    offsets = torch.tensor([0, *counts]).cumsum(0)
    packed = type("Packed", (), {"offsets": offsets})()
    assert_optimal(run.STEPS[label], Step({"targets": packed}, cost, counts))


def test_the_proof_fails_where_an_answer_is_not_optimal():
    given = step(BY_NAME["collapsed"])
    found = run.STEPS["4 batch"].match(given)
    u, v = found.target_duals, found.query_duals
    assert u is not None and v is not None and violation(given, found) <= 1e-12
    swapped = found.query_idx.clone()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    free = next(q for q in range(given.cost.shape[2]) if q not in found.query_idx[0, : given.counts[0]])
    moved = found.query_idx.clone()
    moved[0, 0] = free
    for wrong in (
        Matching(swapped, u, v),
        Matching(moved, u, v),
        Matching(found.query_idx, u + 1e-3, v),
        Matching(found.query_idx, u, v + 1e-3),
        Matching(found.query_idx, u + 1, v - 1),
    ):
        assert violation(given, wrong) > 1e-7
    twice = found.query_idx.clone()
    twice[0, 0] = twice[0, 1]
    with pytest.raises(AssertionError, match="one to one"):
        violation(given, Matching(twice, u, v))


def test_reads_of_the_host_are_counted_until_a_tensor_is_copied():
    def reads() -> None:
        x = torch.arange(4.0)
        x.sum().item()
        copied = x.cpu()
        copied[1:].numpy()
        copied.tolist()

    assert counting.host_reads(reads) == 2
    given = step(BY_NAME["middle"])
    assert counting.host_reads(lambda: step1_scipy.match(given)) == given.cost.shape[0]
    assert counting.host_reads(lambda: step5_device.match(given)) == 0
    assert counting.host_reads(lambda: step5_device.match_predictions(given)) == 0


@pytest.mark.parametrize("module", dict.fromkeys(each.module for each in run.STEPS.values()))
def test_what_a_step_prints(module, monkeypatch, capsys):
    monkeypatch.setattr(run, "CASES", (MatchingCase("tiny", 2, 12, 5, (3, 5)),))
    monkeypatch.setattr(run, "in_turns", lambda calls: {x: f() is None or 1.0 for x, f in calls.items()})
    threads = torch.get_num_threads()
    run.main(module)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "2 sets, images of 3, 5 targets" in printed and "proof" in printed and "why" in printed
