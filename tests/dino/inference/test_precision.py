"""A detector in 16 bits, and compiled: the same detections up to a stated difference."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from dino.common.device import choose_dtype
from dino.inference.detections import Detections
from dino.inference.detector import Detector
from dino.model.config import model_config
from tests.dino.tools_toys import CATEGORIES, TINY, noise_picture, same, tiny_detector
from tests.graphs import Graphs


@pytest.mark.parametrize(
    ("device", "dtype", "instructions", "expected"),
    [
        ("cpu", "auto", "", ("float32", "off")),
        ("cpu", "auto", "_is_avx512_bf16_supported", ("bfloat16", "bf16")),
        ("cpu", "auto", "_is_amx_tile_supported", ("bfloat16", "bf16")),
        ("cuda", "auto", "_is_amx_tile_supported", ("float32", "off")),
        ("cpu", "float32", "_is_amx_tile_supported", ("float32", "off")),
        ("cuda", "float16", "", ("float16", "fp16")),
        ("cpu", torch.bfloat16, "", ("bfloat16", "bf16")),
    ],
)
def test_a_dtype_is_chosen_by_the_instructions_of_the_cpu(monkeypatch, device, dtype: Any, instructions, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions)
    assert choose_dtype(torch.device(device), dtype) == expected


def test_a_torch_that_cannot_tell_the_instructions_runs_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert choose_dtype(torch.device("cpu"), "auto") == ("float32", "off")


def differences(found: Detections, expected: Detections) -> tuple[float, float]:
    """Return the largest difference of a score, and of a box in shares of the image, to the nearest of its class."""
    gaps = (found.boxes_xyxy - expected.boxes_xyxy[:, None]).abs().amax(-1) / max(expected.size_hw)
    gaps = gaps.masked_fill(found.labels != expected.labels[:, None], torch.inf)
    nearest = gaps.argmin(1)
    return (found.scores[nearest] - expected.scores).abs().max().item(), gaps.amin(1).max().item()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_detections_in_16_bits_differ_little(dtype):
    # With static queries rounding does not select others, so that every detection has a counterpart.
    exact = tiny_detector(model_config(TINY, query_selection="static"))
    half = Detector(exact.model, CATEGORIES, transform=exact.transform, device="cpu", dtype=dtype)
    for seed in range(3):
        expected, found = (each.predict(noise_picture(seed=seed), 0.0) for each in (exact, half))
        scores, boxes = differences(found, expected)
        assert not same(found, expected) and scores < 0.03 and boxes < 0.01, (scores, boxes)


def test_a_compiled_detector_is_one_graph_with_the_same_detections(monkeypatch, detector, picture):
    graphs = Graphs()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_autograd(fw_compiler=graphs)))
    compiled = Detector(detector.model, CATEGORIES, transform=detector.transform, device="cpu", compile=True)
    expected = detector.predict(picture, 0.0)
    for _ in range(2):
        found = compiled.predict(picture, 0.0)
        assert torch.equal(found.labels, expected.labels)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
        assert torch.allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
    assert len(graphs.graphs) == 1
