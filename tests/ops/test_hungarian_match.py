"""A matching is the assignment of its costs, to the bit, and DINO's own; hence the tests of these two hold for it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import scipy.optimize
import torch
from torch import Tensor

from dino_kernels import PackedTargets, hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops._matching import INCOMPLETE, INVALID_COST, INVALID_TARGET, NONFINITE_PREDICTION
from dino_kernels.ops.hungarian_match import Match
from dino_kernels.testing import DTYPES, MATCHING_CASES, MatchingCase, assert_same_bits, matching_inputs
from tests.ops.costs import CASE, INF, NAN, SLOW, sized

# With one best matching in float32; DINO's own code needs queries and images.
REALISTIC = [
    case for case in MATCHING_CASES if case.stage not in ("repeated", "saturated") and case.queries and case.targets
]


def match_fully(inputs: dict[str, Any], backend: str, **options: Any) -> Any:
    return hungarian_match(**inputs, full_output=True, backend=backend, **options)


def in_two_steps(inputs: dict[str, Any], backend: str, ties: str, **options: Any) -> Match:
    cost = matching_cost(**inputs, **options, backend=backend)
    offsets = inputs["targets"].offsets
    return Match(*linear_sum_assignment(cost, offsets=offsets, ties=ties, full_output=True, backend=backend))  # type: ignore[call-overload]


def assert_same(match: Match, expected: Match, but: str = "") -> None:
    names = [name for name in Match._fields if name != but]
    assert_same_bits([getattr(match, name) for name in names], [getattr(expected, name) for name in names], names)


def poison(inputs: dict[str, Any], seed: int = 0) -> None:
    """NaN, infinities and bad labels in a twentieth of everything, in place."""
    generator = torch.Generator().manual_seed(seed)
    targets = inputs["targets"]
    values = torch.tensor([NAN, INF, -INF])
    for tensor in (inputs["logits"], inputs["boxes"], targets.boxes_cxcywh):
        drawn = values[torch.randint(3, tensor.shape, generator=generator)].to(tensor)
        chosen = (torch.rand(tensor.shape, generator=generator) < 0.02).to(tensor.device)
        tensor.copy_(torch.where(chosen, drawn, tensor))
    chosen = (torch.rand(targets.labels.shape, generator=generator) < 0.05).to(targets.labels.device)
    targets.labels.masked_fill_(chosen, -1)


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
@pytest.mark.parametrize("hostile", [False, True], ids=["valid", "hostile"])
@pytest.mark.parametrize("case", MATCHING_CASES, ids=lambda case: case.id)
def test_matching_is_the_assignment_of_its_costs(matching_backend, device, deterministic, case, hostile, ties):
    inputs = matching_inputs(sized(case, matching_backend), device=device)
    if hostile:
        poison(inputs)
    match, expected = match_fully(inputs, matching_backend, ties=ties), in_two_steps(inputs, matching_backend, ties)
    assert_same(match, expected, "status")
    predictions = NONFINITE_PREDICTION | INVALID_TARGET
    assert torch.equal(match.status & ~predictions, expected.status)
    assert hostile or not (match.status & predictions).any()
    brief = hungarian_match(**inputs, ties=ties, backend=matching_backend)
    assert_same_bits(brief[:2], match[:2], Match._fields[:2])
    assert brief[2:] == (None, None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["dino", "detr", "rf_detr"])
def test_matching_of_any_dtype_is_the_assignment_of_its_costs(matching_kernel, device, dtype, preset):
    inputs = matching_inputs(sized(MATCHING_CASES[0], matching_kernel), DTYPES[dtype], device)
    poison(inputs, seed=1)
    expected = in_two_steps(inputs, matching_kernel, "lowest", preset=preset)
    assert_same(match_fully(inputs, matching_kernel, preset=preset), expected, "status")


@pytest.mark.parametrize("case", MATCHING_CASES, ids=lambda case: case.id)
def test_the_status_is_the_references(matching_kernel, device, case):
    for seed in range(2):
        inputs = matching_inputs(sized(case, matching_kernel), device=device, seed=seed)
        poison(inputs, seed)
        status = match_fully(inputs, matching_kernel).status
        assert torch.equal(status, match_fully(inputs, "reference").status)


def dinos_matching(inputs: dict[str, Any]) -> Tensor:
    """As IDEA's DINO matches, one set after the other: all queries of the batch with all targets, SciPy per image."""
    targets, rows = inputs["targets"], []
    counts = list(targets.counts)
    truth = targets.boxes_cxcywh
    for logits, boxes in zip(inputs["logits"], inputs["boxes"], strict=True):
        images, queries = logits.shape[:2]
        probability = logits.flatten(0, 1).float().sigmoid()
        negative = 0.75 * probability**2.0 * -(1 - probability + 1e-8).log()
        positive = 0.25 * (1 - probability) ** 2.0 * -(probability + 1e-8).log()
        class_cost = positive[:, targets.labels] - negative[:, targets.labels]
        flat = boxes.flatten(0, 1).float()
        giou = pairwise_giou(flat, truth)
        cost = 5.0 * torch.cdist(flat, truth, p=1) + 2.0 * class_cost - 2.0 * giou
        cost = cost.view(images, queries, -1).cpu()
        row = torch.full((len(targets),), -1)
        start = 0
        for image, of_image in enumerate(cost.split(counts, -1)):
            query, target = scipy.optimize.linear_sum_assignment(of_image[image].numpy())
            row[start + torch.from_numpy(target)] = torch.from_numpy(query)
            start += counts[image]
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros(0, len(targets), dtype=torch.int64)


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    (low, high), (low_, high_) = ((x[:, :2] - 0.5 * x[:, 2:], x[:, :2] + 0.5 * x[:, 2:]) for x in (boxes, others))
    area, area_ = (high - low).prod(1), (high_ - low_).prod(1)
    overlap = (torch.min(high[:, None], high_) - torch.max(low[:, None], low_)).clamp(min=0).prod(2)
    union = area[:, None] + area_ - overlap
    hull = (torch.max(high[:, None], high_) - torch.min(low[:, None], low_)).clamp(min=0).prod(2)
    return overlap / (union + 1e-6) - (hull - union) / (hull + 1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", REALISTIC, ids=lambda case: case.id)
def test_matches_are_those_of_dino_with_scipy(matching_backend, device, case, dtype):
    inputs = matching_inputs(sized(case, matching_backend), DTYPES[dtype], device, seed=3)
    if dtype == "bf16" and case.stage == "collapsed":
        pytest.skip("collapsed queries are the same in bfloat16")
    match = hungarian_match(**inputs, backend=matching_backend)
    assert torch.equal(match.query_idx.cpu(), dinos_matching(inputs))
    assert (match.status == 0).all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("what", ["logits", "boxes", "both"])
@pytest.mark.parametrize("stage", ["initial", "middle", "late"])
def test_a_twentieth_of_nan_queries_is_as_if_it_were_not_there(matching_backend, device, stage, what, dtype):
    case = MatchingCase("broken", 2, 100, 12, (7, 20, 1), stage)
    if matching_backend in SLOW:
        case = replace(case, queries=20, targets=(4, 5, 1))
    inputs = matching_inputs(case, DTYPES[dtype], device)
    clean = hungarian_match(**inputs, backend=matching_backend)
    broken = torch.randperm(case.queries, generator=torch.Generator().manual_seed(0))[: case.queries // 20]
    # Those that would be matched.
    broken = torch.cat([broken, clean.query_idx[0, :2].cpu()]).unique().to(device)
    for name in ("logits", "boxes"):
        if what in (name, "both"):
            inputs[name][:, :, broken] = NAN
    match = match_fully(inputs, matching_backend)
    assert not torch.isin(match.query_idx, broken).any()
    assert (match.query_idx >= 0).all()
    assert (match.status == NONFINITE_PREDICTION).all()
    kept = torch.ones(case.queries, dtype=torch.bool, device=device).index_fill(0, broken, False).nonzero()[:, 0]
    fewer = {**inputs, "logits": inputs["logits"][:, :, kept], "boxes": inputs["boxes"][:, :, kept]}
    without = match_fully(fewer, matching_backend)
    assert torch.equal(match.query_idx, kept[without.query_idx])
    torch.testing.assert_close(match.objective, without.objective, rtol=1e-6, atol=1e-6)


def test_when_all_queries_are_nan_nothing_is_matched(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    inputs["logits"][1] = NAN
    match = match_fully(inputs, matching_backend)
    bits = NONFINITE_PREDICTION | INCOMPLETE
    assert match.status.tolist() == [[0, 0, 0], [bits, 0, bits]]  # the second image has no targets
    assert (match.query_idx[1] == -1).all() and (match.query_idx[0] >= 0).all()
    assert (match.objective[1] == 0).all()


def test_status_bits_name_what_was_wrong(matching_backend, device):
    inputs = matching_inputs(MatchingCase("wrong", 2, 9, 4, (2, 2, 2, 12, 2)), device=device)
    labels, boxes = inputs["targets"].labels, inputs["targets"].boxes_cxcywh
    inputs["boxes"][0, 0, 3, 1] = INF  # a query that is not needed
    labels[2] = 4  # no class
    boxes[4, 2] = -0.1
    inputs["extra_cost"] = torch.zeros(1, 20, 9, device=device)
    inputs["extra_cost"][:, -1, 5] = NAN
    match = match_fully(inputs, matching_backend)
    bad_target = INVALID_TARGET | INCOMPLETE
    expected = [NONFINITE_PREDICTION, bad_target, bad_target, 0, INVALID_COST]
    assert match.status.tolist() == [expected, [0, *expected[1:]]]
    assert (match.query_idx[:, [2, 4]] == -1).all()
    matched = match.query_idx >= 0
    assert matched[:, [0, 1, 3, 5, 18, 19]].all()
    assert (matched[:, 6:18].sum(1) == 9).all()  # one query each, and nothing is wrong with that


def test_targets_of_another_step_in_the_same_memory(matching_kernel, device):
    """As a CUDA graph sees them."""
    fixed = PackedTargets.empty(2, 12, max_targets=9, device=device)
    for counts in ((5, 3), (0, 0), (9, 3), (0, 1), (1, 9)):
        inputs = matching_inputs(MatchingCase("step", 2, 10, 4, counts), device=device)
        expected = match_fully(inputs, matching_kernel)
        match = match_fully({**inputs, "targets": fixed.copy_(inputs["targets"])}, matching_kernel)
        assert torch.equal(match.query_idx[:, : sum(counts)], expected.query_idx)
        assert (match.query_idx[:, sum(counts) :] == -1).all()
        assert_same_bits(match[1:3], expected[1:3], Match._fields[1:3])


@pytest.mark.parametrize("queries", [(9, 9), (9, 5), (4, 12)])
def test_sets_in_a_list_are_matched_as_each_alone(matching_backend, device, queries):
    each = [matching_inputs(replace(CASE, sets=2, queries=count), device=device) for count in queries]
    targets = each[0]["targets"]
    logits, boxes = [[inputs[name] for inputs in each] for name in ("logits", "boxes")]
    match = match_fully({"logits": logits, "boxes": boxes, "targets": targets}, matching_backend)
    for number, inputs in enumerate(each):
        some = slice(2 * number, 2 * number + 2)
        alone = match_fully({**inputs, "targets": targets}, matching_backend)
        assert torch.equal(match.query_idx[some], alone.query_idx)
        assert_same_bits([match.objective[some]], [alone.objective], ["objective"])
        # Other sets have queries enough.
        missing = torch.tensor([INCOMPLETE * (queries[number] < count < max(queries)) for count in CASE.targets])
        assert torch.equal(match.status[some].cpu(), alone.status.cpu() | missing)
        assert (match.query_duals[some, :, queries[number] :] == 0).all()


def test_an_extra_cost_decides(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    count, queries = len(inputs["targets"]), inputs["logits"].shape[2]
    wanted = torch.cat([torch.arange(number).flip(0) for number in inputs["targets"].counts]).to(device)
    extra = torch.full((1, count, queries), 100.0, device=device)
    extra[0, torch.arange(count), wanted] = 0.0
    match = hungarian_match(**inputs, extra_cost=extra, backend=matching_backend)
    assert match.query_idx.tolist() == [wanted.tolist()] * 2


def test_masks_alone_can_be_matched(matching_backend, device):
    """No boxes, and all weights on the extra cost."""
    logits = torch.zeros(1, 4, 3, device=device)
    extra = torch.rand(1, 2, 4, device=device)
    targets = [{"labels": torch.tensor([0, 2], device=device)}]
    match = hungarian_match(logits, None, targets, weights=(0.0, 0.0, 0.0), extra_cost=extra, backend=matching_backend)
    rows, columns = scipy.optimize.linear_sum_assignment(extra[0].cpu().numpy())
    assert match.query_idx.tolist() == [columns.tolist()] and rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("nan", "matrix contains invalid numeric entries"), ("infeasible", "cost matrix is infeasible")],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_check_has_the_messages_of_scipy(require_matching, backend, wrong, message):
    require_matching(backend)
    inputs = matching_inputs(CASE)
    hungarian_match(**inputs, check="raise", backend=backend)
    if wrong == "nan":
        inputs["logits"][0, 0, 1] = NAN
    else:
        inputs["extra_cost"] = torch.zeros(1, len(inputs["targets"]), inputs["logits"].shape[2])
        inputs["extra_cost"][:, 1] = INF
    with pytest.raises(ValueError, match=f"hungarian_match: .*{message}"):
        hungarian_match(**inputs, check="raise", backend=backend)
    with pytest.warns(RuntimeWarning, match=message):
        hungarian_match(**inputs, check="warn", backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hungarian_match(**inputs, backend=backend)
