"""Modules that call the ops, exported by torch.onnx.export and run in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import dino_kernels
import dino_kernels.onnx
from dino_kernels.nn import MSDeformAttn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

from tests.onnx import nodes  # noqa: E402

pytestmark = [
    pytest.mark.skipif(dino_kernels.onnx.why_missing() is not None, reason=str(dino_kernels.onnx.why_missing())),
    pytest.mark.filterwarnings("ignore"),  # the exporter's own
]


def exported(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any = None) -> bytes:
    program = torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        opset_version=18,
        dynamic_shapes=shapes,
        custom_translation_table=dino_kernels.onnx.translations(),
        verbose=False,
    )
    assert program is not None
    onnx.checker.check_model(program.model_proto)
    return program.model_proto.SerializeToString()


def same(module: nn.Module, file: bytes, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether ONNX Runtime returns what the module does, but for the order of sums in linear layers."""
    running = nodes.session(file)
    given = {each.name: tensor for each, tensor in zip(running.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = module(*inputs)
    return torch.allclose(nodes.run(running, given), expected, rtol=1e-5, atol=1e-5)


class Encoder(nn.Module):
    """Self-attention on two maps of free sizes: level sizes are then symbolic."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = MSDeformAttn(16, n_levels=2, n_heads=2, n_points=3)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in (fine, coarse)]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in (fine, coarse)], 1)
        references = tokens[..., None, :2].sigmoid().expand(-1, -1, 2, -1)
        return self.attention(tokens, references, tokens, shapes, None, tokens[..., 0] > 1)


def maps(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    return (
        torch.randn(batch, 16, height, width, generator=generator),
        torch.randn(batch, 16, height // 2, width // 2, generator=generator),
    )


def test_batch_and_sizes_stay_free():
    module, example = Encoder(), maps(2, 8, 12)
    batch, height, width = Dim("batch"), Dim("height", min=2), Dim("width", min=2)
    shapes = ({0: batch, 2: 2 * height, 3: 2 * width}, {0: batch, 2: height, 3: width})
    file = exported(module, example, shapes)
    kinds = [node.op_type for node in onnx.load_from_string(file).graph.node]
    assert kinds.count("FusedMSDeformAttn") == 1 and "GridSample" not in kinds
    assert all(same(module, file, maps(*sizes)) for sizes in ((2, 8, 12), (1, 30, 6), (3, 4, 4)))


def test_fixed_sizes_and_one_fixed_side():
    module, example = Encoder(), maps(2, 8, 12)
    assert same(module, exported(module, example), example)
    height = Dim("height", min=2)  # sizes of a level are then a number and a scalar of the graph
    file = exported(module, example, ({2: 2 * height}, {2: height}))
    assert all(same(module, file, maps(2, side, 12)) for side in (8, 20))


class Classic(nn.Module):
    def forward(self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return dino_kernels.ms_deform_attn(value, shapes, starts, locations, weights)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_the_classic_op_and_levels_given_as_tensors(dtype):
    torch.manual_seed(0)
    inputs = (
        torch.randn(2, 26, 2, 8),
        torch.tensor([[4, 5], [2, 3]], dtype=dtype),
        torch.tensor([0, 20], dtype=dtype),
        torch.rand(2, 7, 2, 2, 3, 2),
        torch.rand(2, 7, 2, 2, 3),
    )
    assert same(Classic(), exported(Classic(), inputs), inputs)


def test_half_precision_keeps_reference_points_in_float32():
    module, example = Encoder().half(), tuple(x.half() for x in maps(2, 8, 12))
    file = exported(module, example)
    running = nodes.session(file)
    given = {each.name: tensor for each, tensor in zip(running.get_inputs(), example, strict=True)}
    output = nodes.run(running, given)
    with torch.no_grad():
        expected = module(*example)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
