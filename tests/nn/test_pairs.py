"""`pairs_of` returns DETR's pairs, and `matching_status` names what was wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dino_kernels import Match, PackedTargets, hungarian_match, matching_status, pairs_of
from tests.nn.originals import COUNTS, Pairs, assert_same, broken_predictions, ground_truth, matcher, predictions


def expected_pairs(query_idx: Tensor, counts: tuple[int, ...]) -> list[Pairs]:
    """Pair by pair."""
    sets = []
    for row in query_idx.tolist():
        images, start = [], 0
        for count in counts:
            found = sorted((query, t) for t, query in enumerate(row[start : start + count]) if query >= 0)
            images.append(tuple(torch.tensor([pair[i] for pair in found], dtype=torch.int64) for i in (0, 1)))
            start += count
        sets.append(images)
    return sets


def random_queries(sets: int, counts: tuple[int, ...], unmatched: float) -> Tensor:
    generator = torch.Generator().manual_seed(sum(counts))
    rows = []
    for _ in range(sets):
        rows.append(torch.cat([torch.randperm(900, generator=generator)[:count] for count in (0, *counts)]))
    queries = torch.stack(rows)
    return queries.where(torch.rand(queries.shape, generator=generator) >= unmatched, -1)


@pytest.mark.parametrize("counts", [(3, 0, 7, 1), (0, 0), (1,), (), (0, 40, 0, 0, 2)], ids=str)
@pytest.mark.parametrize("unmatched", [0.0, 0.3, 1.0])
def test_pairs_are_sorted_by_query_and_leave_out_targets_without_one(counts: tuple[int, ...], unmatched: float) -> None:
    queries = random_queries(3, counts, unmatched)
    targets = PackedTargets.pack(ground_truth(*counts))
    match = Match(queries, torch.zeros(3, len(counts), dtype=torch.int32), None, None, None)
    before = queries.clone()
    for given in (match, queries):
        found = pairs_of(given, targets)
        assert len(found) == 3
        for pairs, expected in zip(found, expected_pairs(queries, counts), strict=True):
            assert_same(pairs, expected)
    assert torch.equal(queries, before)


@pytest.mark.parametrize("unmatched", [0.0, 0.3])
def test_pairs_leave_out_capacity_that_is_not_in_use(unmatched: float) -> None:
    counts = (3, 0, 7, 1)
    targets = PackedTargets.pack(ground_truth(*counts), capacity=20)
    queries = torch.full((2, 20), -1)
    queries[:, :11] = random_queries(2, counts, unmatched)
    for pairs, expected in zip(pairs_of(queries, targets), expected_pairs(queries, counts), strict=True):
        assert_same(pairs, expected)


def test_pairs_of_a_matching_are_those_of_the_matcher() -> None:
    outputs, targets = predictions(4, 25), ground_truth(*COUNTS)
    weights = (2.0, 5.0, 2.0)
    match = hungarian_match(outputs["pred_logits"], outputs["pred_boxes"], targets, preset="detr", weights=weights)
    assert_same(pairs_of(match, targets)[0], matcher("detr")(outputs, targets))


def test_pairs_of_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="targets must have 3 targets, as match, got 2"):
        pairs_of(torch.zeros(1, 3, dtype=torch.int64), ground_truth(2))


def test_a_status_is_spelled_out() -> None:
    assert matching_status(0) == [] == matching_status(torch.zeros(2, 3, dtype=torch.int32))
    assert matching_status(1) == ["matrix contains invalid numeric entries (predictions that are not finite)"]
    assert matching_status(torch.tensor([[0, 8], [2, 0]])) == [
        "matrix contains invalid numeric entries (a target's box or label)",
        "cost matrix is infeasible",
    ]
    outputs = broken_predictions()
    match = hungarian_match(outputs["pred_logits"], outputs["pred_boxes"], ground_truth(6, 4))
    assert matching_status(match.status) == matching_status(match.status[0]) == matching_status(1)
    assert matching_status(match.status[:, 1]) == []
