"""A whole small DINO with the form "op": ONNX Runtime detects what PyTorch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dino
import dino_kernels.onnx
from dino.data import Categories, EvalTransform
from dino.export.attention import FORMS
from dino.export.description import Description
from dino.export.graph import least_side, trace
from dino.export.onnx_file import to_onnx
from dino.model.postprocess import postprocess

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tests.onnx import nodes

pytestmark = pytest.mark.skipif(
    dino_kernels.onnx.why_missing() is not None, reason=str(dino_kernels.onnx.why_missing())
)
SMALL: dict[str, Any] = {
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "ffn_dim": 32,
}
DETECTIONS = 20


@pytest.fixture(scope="module")
def model() -> dino.DINO:
    """Build a model with random weights everywhere, so that its detections differ."""
    torch.manual_seed(0)
    model = dino.build_model("dino_tiny", **SMALL, num_queries=30, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def file(model) -> bytes:
    names = Categories(tuple(range(5)), tuple("abcde"))
    side = least_side(model)
    description = Description(model.config, names, EvalTransform(64, 96), "op", detections=DETECTIONS, least_side=side)
    program = trace(model, FORMS["op"], description)
    return to_onnx(program, FORMS["op"], description, 18).SerializeToString()


def images(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and mask; every second image is padded."""
    pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(width))
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[1::2, -16:] = True
    mask[1::2, :, -24:] = True
    return pixels.masked_fill(mask[:, None], 0), mask


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(1, 96, 128), (2, 128, 160)], ids=str)
def test_detections_are_those_of_pytorch(model, file, size, threads):
    pixels, mask = images(*size)
    sizes = torch.tensor([[480, 640], [375, 500]])[: size[0]]
    running = nodes.session(file, threads)
    given = {"images": pixels.numpy(), "mask": mask.numpy(), "sizes": sizes.numpy()}
    scores, labels, boxes = (torch.from_numpy(array) for array in running.run(None, given))
    with torch.no_grad():
        expected = postprocess(model(pixels, mask), sizes, DETECTIONS)
    for image, detections in enumerate(expected):
        torch.testing.assert_close(scores[image], detections["scores"], rtol=1e-4, atol=1e-5)
        assert detections["scores"].unique().numel() == DETECTIONS, "ties have no order"
        assert torch.equal(labels[image], detections["labels"])
        torch.testing.assert_close(boxes[image], detections["boxes"], rtol=1e-4, atol=0.02)
