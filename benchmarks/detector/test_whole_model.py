"""Time a detector of transformers on a photograph, as it is and with its attention replaced by ours."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from functools import partial
from typing import Any

import numpy
import pytest
import torch

from benchmarks.attention.stage import PASSES
from benchmarks.attention.workloads import SHORT
from benchmarks.measure.playback import CLOCK
from benchmarks.measure.race import race, stopwatch_for
from benchmarks.measure.results import spread, times
from dino_kernels.integrations import transformers as integration

MODEL = "DeformableDetr, ResNet-50, 6 + 6 layers, 300 queries"


def deformable_detr() -> torch.nn.Module:
    """Build the model in full size with random weights, without a download."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        num_labels=91,
    )
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config)
    for name, parameter in model.named_parameters():
        # Zero at the start of training, when every query samples the same pattern; trained models do not.
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def photograph() -> torch.Tensor:
    """Load a normalised photograph, [1, 3, 320, 480]."""
    datasets: Any = importlib.import_module("sklearn.datasets")
    pixels = torch.from_numpy(numpy.array(datasets.load_sample_image("china.jpg"))).permute(2, 0, 1)[None] / 255.0
    pixels = torch.nn.functional.interpolate(pixels, (320, 480), mode="bilinear", antialias=True)
    return (pixels - 0.45) / 0.225


def forward(model: torch.nn.Module, pixels: torch.Tensor, labels: list) -> torch.Tensor:
    with torch.no_grad():
        return model(pixels).logits


def forward_backward(model: torch.nn.Module, pixels: torch.Tensor, labels: list) -> None:
    model.zero_grad(set_to_none=True)
    model(pixels, labels=labels).loss.backward()


@pytest.fixture(scope="module")
def models(device, effort, results):
    missing = [name for name in ("transformers", "sklearn", "scipy") if importlib.util.find_spec(name) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else None
    if effort is SHORT:
        reason = "it is too slow for --short"
    if reason:
        results.document["not_run"]["whole model"] = reason
        pytest.skip(f"whole model: {reason}")
    before = deformable_detr().to(device)
    after = copy.deepcopy(before)
    integration.replace(after)
    return {"before": before, "after": after}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.benchmark(timer=CLOCK, group=MODEL)
def test_whole_model(which, models, effort, device, results, benchmark):
    pixels = photograph().to(device)
    boxes = torch.tensor([[0.5, 0.45, 0.6, 0.5], [0.2, 0.8, 0.2, 0.1]], device=device)
    labels = [{"class_labels": torch.tensor([1, 3], device=device), "boxes": boxes}]
    expected, got = (forward(models[name].eval(), pixels, labels) for name in ("before", "after"))
    error, allowed = (got - expected).abs().max().item(), 1e-3 * expected.abs().max().item()
    assert error <= allowed, f"no speed for a wrong model: its logits are off by {error:.3g}, allowed {allowed:.3g}"
    step = forward if which == "forward" else forward_backward
    calls = {name: partial(step, model.train(which != "forward"), pixels, labels) for name, model in models.items()}
    timings = race(calls, stopwatch_for(device), effort.race_s, least_laps=2)
    size = "x".join(map(str, pixels.shape[2:]))
    row = {"model": f"{MODEL}, {size}", "pass": which} | {name: times(timing) for name, timing in timings.items()}
    row["speedup"] = spread(timings["after"].speedup_over(timings["before"]))
    results.document["whole_model"].append(row)
    CLOCK.play(benchmark, timings["after"].samples)
