"""Time DINO from image to boxes, with the fastest kernel and with the reference, and each of its parts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.attention.workloads import SHORT
from benchmarks.measure.playback import CLOCK
from benchmarks.measure.race import race, stopwatch_for
from benchmarks.measure.results import spread, times
from dino.checkpoint import build_model
from dino.model import decoder
from dino.model.dino import DINO
from dino_kernels.nn import MSDeformAttn

PRESET, SIZE = "dino_4scale_r50", (800, 1333)
OP = "fused_ms_deform_attn"
# A function: it calls none of the module's own.
SELF_ATTENTION = "decoder.self_attention"
# By the name of a module, or SELF_ATTENTION: the part of the table for its time.
PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "encoder.layers.*.self_attn": "encoder, deformable attention",
    "encoder.layers.*.ffn": "encoder, feed-forward",
    "encoder": "encoder, the rest",
    SELF_ATTENTION: "decoder, self-attention",
    "decoder.layers.*.cross_attn": "decoder, deformable attention",
    "decoder.layers.*.ffn": "decoder, feed-forward",
    "decoder": "decoder, the rest",
    "": "query selection, heads and the rest",
}


def detector(device: str) -> DINO:
    """Build the model with random weights, and sampling offsets with the variance of a trained model."""
    torch.manual_seed(0)
    model = build_model(PRESET, pretrained_backbone=False).to(device).eval()
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@contextmanager
def backend(model: DINO, name: str) -> Iterator[None]:
    """Run all deformable attention of the model with one backend."""
    modules = [module for module in model.modules() if isinstance(module, MSDeformAttn)]
    for module in modules:
        module.backend = name
    yield
    for module in modules:
        module.backend = "auto"


def detect(model: DINO, name: str, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), backend(model, name):
        return model(images, mask).logits[-1]


class PartTimer:
    """The seconds of each part, without those of its own parts."""

    def __init__(self, model: DINO, stopwatch: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[list[Any]] = []
        self._now = stopwatch
        self._hooks = []
        attention = decoder.self_attention

        def timed_attention(*arguments: Any) -> torch.Tensor:
            self._start()
            result = attention(*arguments)
            self._stop(PARTS[SELF_ATTENTION])
            return result

        self._patch = mock.patch.object(decoder, "self_attention", timed_attention)
        self._patch.start()
        for name, module in model.named_modules():
            part = PARTS.get(".".join("*" if piece.isdigit() else piece for piece in name.split(".")))
            if part is not None:
                self._hooks.append(module.register_forward_pre_hook(self._start))
                self._hooks.append(module.register_forward_hook(partial(self._stop, part)))

    def _start(self, *_: Any) -> None:
        self._running.append([self._now(), 0.0])

    def _stop(self, part: str, *_: Any) -> None:
        start, inner = self._running.pop()
        whole = self._now() - start
        self.seconds[part] += whole - inner
        if self._running:
            self._running[-1][1] += whole

    def remove(self) -> None:
        self._patch.stop()
        for hook in self._hooks:
            hook.remove()
        missing = set(PARTS.values()) - set(self.seconds)
        assert not missing, f"never called: {missing}"


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def profile(model: DINO, name: str, images: torch.Tensor, mask: torch.Tensor, device: str) -> dict[str, float]:
    """Return the milliseconds of every part, the medians of three passes."""
    passes = []
    for _ in range(3):
        timer = PartTimer(model, partial(now, device))
        detect(model, name, images, mask)
        timer.remove()
        passes.append(timer.seconds)
    return {part: round(1e3 * median(p[part] for p in passes), 2) for part in PARTS.values()}


@pytest.mark.benchmark(timer=CLOCK, group="DINO, ResNet-50, 4 scales, 800x1333")
def test_detector(effort, device, results, benchmark):
    if effort is SHORT:
        results.document["not_run"]["detector"] = "it is too slow for --short"
        pytest.skip("detector: it is too slow for --short")
    model = detector(device)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.zeros(1, *SIZE, dtype=torch.bool, device=device)
    names = {"reference": "reference", "kernel": "auto"}
    calls = {key: partial(detect, model, name, images, mask) for key, name in names.items()}
    expected, got = calls["reference"](), calls["kernel"]()
    # Near ties of query selection may differ; most scores must not.
    error = (got.sort(1).values - expected.sort(1).values).abs().max().item()
    assert error <= 2e-2 * expected.abs().max().item(), f"no speed for a wrong detector: its logits are off by {error}"
    timings = race(calls, stopwatch_for(device), effort.race_s, least_laps=3)
    parts = {key: profile(model, name, images, mask, device) for key, name in names.items()}
    row = {"model": f"{PRESET}, {'x'.join(map(str, SIZE))}, batch 1", "parts_ms": parts}
    row |= {name: times(timing) for name, timing in timings.items()}
    row["speedup"] = spread(timings["kernel"].speedup_over(timings["reference"]))
    results.document["detector"].append(row)
    CLOCK.play(benchmark, timings["kernel"].samples)
