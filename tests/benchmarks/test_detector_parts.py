"""Parts of the detector's benchmark: together they are the model, and each is called."""

from __future__ import annotations

import time

import torch

from benchmarks.detector.test_detector import PARTS, PartTimer
from dino.checkpoint import build_model


def test_every_part_is_timed_and_no_time_is_counted_twice():
    model = build_model("dino_tiny", num_queries=10, num_classes=2, pretrained_backbone=False).eval()
    timer = PartTimer(model, time.perf_counter)
    begin = time.perf_counter()
    with torch.inference_mode():
        model(torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    whole = time.perf_counter() - begin
    timer.remove()
    assert set(timer.seconds) == set(PARTS.values()) and min(timer.seconds.values()) > 0
    assert 0.5 * whole < sum(timer.seconds.values()) <= whole
