"""The READMEs' tables are made of results alone, and the benchmarks' images have as many boxes as COCO's."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import pytest

from benchmarks.matching.workloads import coco_counts
from benchmarks.measure import report

MACHINE = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "torch": "2.11.0",
    "commit": "a" * 40,
    "uncommitted_changes": False,
    "date": "2026-01-01",
}


def row(op: str, implementation: str, ms: float, **others: Any) -> dict[str, Any]:
    ours = implementation not in ("dino", "scipy", "peer")
    return {"workload": "t20_b2", "op": op, "implementation": implementation, "ours": ours, "median_ms": ms, **others}


def ratio(median: float) -> dict[str, Any]:
    return {"median": median, "quartiles": [median, median]}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"machine": MACHINE, "matching": list(rows)}


def test_the_matching_table_has_our_fastest_kernel_and_for_the_matcher_the_one_that_returns_lists():
    table = report.matching_table(
        document(
            row("matching_cost", "dino", 100.0),
            row("matching_cost", "reference", 0.1, speedup=ratio(1000.0)),
            row("matching_cost", "cpu", 2.0, speedup=ratio(50.0)),
            row("matching_cost", "triton", 4.0, speedup=ratio(25.0)),
            row("linear_sum_assignment", "scipy", 10.0),
            row("linear_sum_assignment", "peer", 0.5, speedup=ratio(20.0)),
            row("hungarian_match", "dino", 200.0),
            row("hungarian_match", "cpu", 1.0, speedup=ratio(200.0)),
            row("hungarian_match", "cpu-lists", 2.0, speedup=ratio(100.0)),
        )
    )
    assert table[1] == ["t20_b2", "100", "2", "50.0x", "10", "-", "-", "200", "2", "100x"]


def test_without_the_baseline_there_is_a_time_and_no_ratio():
    table = report.matching_table(document(row("hungarian_match", "cpu-lists", 2.0)))
    assert table[1] == ["t20_b2", "-", "-", "-", "-", "-", "-", "-", "2", "-"]


@pytest.mark.parametrize("name", ["matching", "matching_cost", "linear_sum_assignment", "hungarian_match"])
def test_results_from_before_a_table_say_so_in_its_place(name):
    older = {"machine": MACHINE}
    text = f"before\n<!-- results:{name} -->\nold\n<!-- /results -->\nbehind"
    made = report.update(text, lambda folder, file: older)
    assert report.NOT_MEASURED in made and "old\n" not in made.replace(report.NOT_MEASURED, "")
    assert report.update(made, lambda folder, file: older) == made


def test_images_have_as_many_boxes_as_those_of_coco():
    counts = sorted(coco_counts(10_000))
    assert 7.0 < mean(counts) < 7.8
    assert median(counts) == 4
    assert counts[9_900] <= 34 and counts[-1] > 60
    assert 5 < mean(coco_counts(2)) < 8 and 6.5 < mean(coco_counts(16)) < 8
