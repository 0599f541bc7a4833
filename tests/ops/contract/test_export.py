"""`torch.export` of attention and matching: programs run at other sizes, and survive saving and decomposing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dino_kernels
from dino_kernels import PackedTargets
from dino_kernels.nn import MSDeformAttn
from dino_kernels.ops.fused_ms_deform_attn import native
from dino_kernels.testing import MatchingCase, matching_inputs
from tests.conftest import device_of

pytestmark = pytest.mark.compiler

SHAPES, LARGER = ((9, 11), (5, 6)), ((8, 13), (4, 7))
Arguments = tuple[Tensor, ...]


class Layer(nn.Module):
    """MSDeformAttn with arguments by position, as export needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MSDeformAttn(32, n_levels=2, n_heads=4, n_points=2)

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.attention(*arguments)


def layer_inputs(batch: int, queries: int, shapes: tuple[tuple[int, int], ...]) -> Arguments:
    generator = torch.Generator().manual_seed(3)
    rows = sum(height * width for height, width in shapes)
    return (
        torch.randn(batch, queries, 32, generator=generator),
        torch.rand(batch, queries, 2, 4, generator=generator),
        torch.randn(batch, rows, 32, generator=generator),
        torch.tensor(shapes),
        torch.tensor([0, shapes[0][0] * shapes[0][1]]),
        torch.rand(batch, rows, generator=generator) < 0.2,
    )


class Matcher(nn.Module):
    """All matching ops with arguments by position."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor, offsets: Tensor) -> Arguments:
        targets = PackedTargets(labels, truth, offsets, 100)
        inputs = {"logits": logits, "boxes": boxes, "targets": targets}
        cost = dino_kernels.matching_cost(**inputs, backend=self.backend)
        columns = dino_kernels.linear_sum_assignment(cost, offsets=offsets, backend=self.backend)
        return cost, columns, dino_kernels.hungarian_match(**inputs, backend=self.backend).query_idx


def matcher_inputs(device: str, queries: int, *targets: int) -> Arguments:
    inputs = matching_inputs(MatchingCase("export", 2, queries, 3, targets), device=device)
    packed = inputs["targets"]
    return inputs["logits"], inputs["boxes"], packed.labels, packed.boxes_cxcywh, packed.offsets


def check_program(module: nn.Module, calls: list[Arguments], dynamic: Any, path: Any) -> None:
    """Export with the first call, and run all of them, also after saving and decomposing."""
    program = torch.export.export(module, calls[0], dynamic_shapes=dynamic)
    torch.export.save(program, path)
    for exported in (program, torch.export.load(path), program.run_decompositions()):
        for arguments in calls:
            torch.testing.assert_close(exported.module()(*arguments), module(*arguments))


def sizes(*names: str) -> list[Any]:
    return [torch.export.Dim(name, min=2, max=4096) for name in names]


def test_an_exported_layer_runs_at_other_sizes_and_survives_saving(tmp_path):
    batch, queries, rows = sizes("batch", "queries", "rows")
    dynamic = ({0: batch, 1: queries}, {0: batch, 1: queries}, {0: batch, 1: rows}, {}, {}, {0: batch, 1: rows})
    calls = [layer_inputs(2, 17, SHAPES), layer_inputs(3, 31, LARGER)]
    check_program(Layer().eval(), calls, {"arguments": dynamic}, tmp_path / "layer.pt2")


@pytest.mark.parametrize(("requested", "stored"), [("auto", "auto"), ("cpu", "cpu")])
def test_an_exported_layer_chooses_its_backend_where_it_runs(requested, stored, monkeypatch):
    layer, arguments = Layer(), layer_inputs(2, 17, SHAPES)
    layer.attention.backend = requested
    program = torch.export.export(layer, arguments)
    assert [n.args[-1] for n in program.graph.nodes if "fused_ms_deform_attn" in str(n.target)] == [stored]
    expected = layer(*arguments)
    chosen = []
    forward = type(native.cpu).forward
    monkeypatch.setattr(type(native.cpu), "forward", lambda self, a: chosen.append(self) or forward(self, a))
    found = program.module()(*arguments)
    assert chosen == [native.cpu]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", ["cpu", "triton", "cuda"])
def test_an_exported_matcher_runs_at_other_sizes_and_survives_saving(require_matching, kernel, tmp_path):
    require_matching(kernel)
    queries, targets = sizes("queries", "targets")
    calls = [matcher_inputs(device_of(kernel), *counts) for counts in ((6, 2, 3), (9, 5, 6), (4, 7, 0))]
    dynamic = ({2: queries}, {2: queries}, {0: targets}, {0: targets}, {})
    check_program(Matcher(kernel), calls, dynamic, tmp_path / "matcher.pt2")


@pytest.mark.parametrize("dynamic", [True, None])
def test_the_layer_compiles_into_one_graph_with_gradients(dynamic):
    torch._dynamo.reset()
    layer, arguments = Layer(), layer_inputs(2, 17, SHAPES)
    output = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)(*arguments)
    expected = layer(*arguments)
    torch.testing.assert_close(output, expected)
    parameters = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(output.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    )
