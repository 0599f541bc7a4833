"""The READMEs' tables are made of results alone, and the benchmarks' images have as many boxes as COCO's."""

from statistics import mean, median

import pytest

from benchmarks.matching.workloads import coco_counts
from benchmarks.measure import report

MACHINE = {"gpu": "NVIDIA H100", "torch": "2.11.0", "commit": "a" * 40, "uncommitted_changes": False, "date": "today"}


def row(op, implementation, ms, speedup=None):
    ours = implementation not in ("dino", "scipy", "peer")
    made = {"workload": "t20_b2", "op": op, "implementation": implementation, "ours": ours, "median_ms": ms}
    return made if speedup is None else made | {"speedup": {"median": speedup, "quartiles": [speedup, speedup]}}


def test_the_matching_table_has_our_fastest_kernel_and_for_the_matcher_the_one_that_returns_lists():
    rows = [
        row("matching_cost", "dino", 100.0),
        row("matching_cost", "reference", 0.1, 1000.0),
        row("matching_cost", "cpu", 2.0, 50.0),
        row("matching_cost", "triton", 4.0, 25.0),
        row("linear_sum_assignment", "scipy", 10.0),
        row("linear_sum_assignment", "peer", 0.5, 20.0),
        row("hungarian_match", "dino", 200.0),
        row("hungarian_match", "cpu", 1.0, 200.0),
        row("hungarian_match", "cpu-lists", 2.0, 100.0),
    ]
    table = report.matching_table({"machine": MACHINE, "matching": rows})
    assert table[1] == ["t20_b2", "100", "2", "50.0x", "10", "-", "-", "200", "2", "100x"]
    without_baseline = report.matching_table({"machine": MACHINE, "matching": [row("hungarian_match", "x-lists", 2.0)]})
    assert without_baseline[1] == ["t20_b2", *7 * ["-"], "2", "-"]


@pytest.mark.parametrize("name", ["matching", "linear_sum_assignment"])
def test_a_table_that_is_newer_than_the_results_is_announced_in_its_place(name):
    text = f"before\n<!-- results:{name} -->\nold\n<!-- /results -->\nbehind"
    made = report.update(text, lambda folder, file: {"machine": MACHINE})
    assert report.NOT_MEASURED in made and "old\n" not in made.replace(report.NOT_MEASURED, "")
    assert report.update(made, lambda folder, file: {"machine": MACHINE}) == made


def test_images_have_as_many_boxes_as_those_of_coco():
    counts = sorted(coco_counts(10_000))
    assert 7.0 < mean(counts) < 7.8 and median(counts) == 4 and counts[9_900] <= 34 and counts[-1] > 60
    assert 5 < mean(coco_counts(2)) < 8 and 6.5 < mean(coco_counts(16)) < 8
