"""Triton's kernels of matching in its interpreter: small tiles, scratch memory, many sources.

tests/ops has what all backends have in common.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops._matching import PRESETS, CostFormula, cost_arguments
from dino_kernels.ops.matching_cost import reference as cost_reference
from tests.triton import interpreter
from tests.triton.examples import INF, KINDS, NAN, check_assignment, drawn, predictions, spoil, truth

pytest.importorskip("triton", reason=triton_support.MISSING)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the backend "interpreted", which is one of the ops' backends until the test ends."""
    modules = interpreter.modules()
    for op, module in modules.items():
        monkeypatch.setitem(ops()[op].modules, interpreter.NAME, module)
    return modules


@pytest.fixture
def assignment(interpreted: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = interpreted["linear_sum_assignment"]
    for name, value in interpreter.SMALL_TILES.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
@pytest.mark.parametrize("kind", KINDS)
def test_assignment_has_the_bits_of_the_reference(kind, ties, assignment):
    for seed, shape in enumerate([(2, 5, 9), (1, 9, 4), (1, 6, 6)]):
        check_assignment(assignment, drawn(kind, seed, *shape), ties=ties)


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
def test_assignment_takes_sizes_offsets_strides_and_maximize(ties, assignment):
    cost = drawn("ties", 1, 5, 6, 9)
    sizes = torch.tensor([[6, 9], [3, 2], [0, 4], [5, 0], [2, 7]])
    for matrix, (rows, columns) in zip(cost, sizes.tolist(), strict=True):  # what is not in use may hold anything
        matrix[rows:], matrix[:, columns:] = NAN, -INF
    check_assignment(assignment, cost, sizes=sizes, ties=ties)
    check_assignment(assignment, cost.transpose(1, 2), sizes=sizes.flip(1), maximize=True, ties=ties)

    offsets = torch.tensor([0, 3, 3, 7, 8])  # an image without targets, and four slots that no target uses
    packed = drawn("collapsed", 2, 2, 12, 5)
    packed[:, 8:] = NAN
    check_assignment(assignment, packed, offsets=offsets, ties=ties)
    check_assignment(assignment, packed[:, :, 1:2].expand(-1, -1, 5), offsets=offsets, maximize=True, ties=ties)


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
def test_assignment_with_the_tiles_of_a_gpu(ties, interpreted):
    module = interpreted["linear_sum_assignment"]
    check_assignment(module, drawn("collapsed", 3, 1, 12, 300), ties=ties)
    check_assignment(module, drawn("ties", 4, 1, 300, 11), ties=ties)


COSTS = {
    "dino": PRESETS["dino"],
    "detr": PRESETS["detr"],
    "rf_detr": PRESETS["rf_detr"],
    "gamma_1.5": CostFormula(gamma=1.5, alpha=0.4),
    "gamma_0": CostFormula(gamma=0.0),
    "softmax_alone": CostFormula("softmax", (1.0, 0.0, 0.0)),
}


def checked_cost(module: ModuleType, arguments: Any) -> tuple[Tensor, Tensor]:
    """Cost and status by the kernel, after a comparison with the reference."""
    cost, notes = module.cost_and_notes(arguments)
    single, status = cost_reference.cost_and_status(arguments)
    exact, _ = cost_reference.cost_and_status(arguments, torch.float64)
    assert torch.equal(cost.isnan(), single.isnan()) and torch.equal(cost.isinf(), single.isinf())
    assert torch.equal(cost[cost.isinf()], single[single.isinf()])
    where = single.isfinite() & exact.isfinite() & (single.abs() < 1e30)
    if where.any():
        error, torch_error, wanted = (cost - exact)[where], (single - exact)[where], exact[where]
        for measure in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            rounding = measure(wanted) * torch.finfo(torch.float32).eps / 2
            assert measure(error) <= 2 * measure(torch_error) + 2 * rounding
    joined = notes.new_zeros(notes.shape[:2])
    for note in notes.unbind(2):
        joined |= note
    assert torch.equal(joined, status)
    return cost, joined


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "bad"])
@pytest.mark.parametrize("name", COSTS)
def test_cost_is_as_accurate_as_pytorch(name, bad, interpreted):
    formula = COSTS[name]
    logits, boxes = predictions(torch.float32, 4.0, (1, 70), (1, 9))
    targets = truth((9, 0, 2), capacity=14)
    if formula.weights[1] == 0:
        boxes = []
    if bad:
        spoil(logits, boxes, targets)
    extra = torch.randn(2 if bad else 1, 14, 70, generator=torch.Generator().manual_seed(2))
    extra[0, 0, 8], extra[-1, :, 3:5] = INF, NAN
    for extra_cost in (None, extra):
        arguments = cost_arguments(
            "matching_cost", logits, boxes, targets, "dino", extra_cost, dataclasses.asdict(formula)
        )
        _, status = checked_cost(interpreted["matching_cost"], arguments)
        if extra_cost is None:
            # The box that is not finite in image 1, which has no targets, does no harm.
            assert status.tolist() == ([[3, 0, 0], [2, 0, 1]] if bad else [[0, 0, 0], [0, 0, 0]])


def test_cost_reads_a_list_of_sources_where_they_are(interpreted):
    """More than fit one launch, of different strides and sizes, and one without queries."""
    (stacked,), (stacked_boxes,) = predictions(torch.float32, 2.0, (10, 9))
    logits = [*stacked[:, :, 2:, :].split(1), stacked[:2, :, :4], stacked[:0], stacked[:1, :, :0]]
    boxes = [*stacked_boxes[:, :, 2:].split(1), stacked_boxes[:2, :, :4], stacked_boxes[:0], stacked_boxes[:1, :, :0]]
    logits.append(stacked[:1].transpose(2, 3).contiguous().transpose(2, 3))
    boxes.append(stacked_boxes[:1])
    arguments = cost_arguments("matching_cost", logits, boxes, truth((2, 0, 1)), "dino", None, {})
    cost, _ = checked_cost(interpreted["matching_cost"], arguments)
    assert cost.shape == (14, 3, 9) and cost[12].isinf().all()
    no_queries = cost_arguments("matching_cost", logits[-2:-1], boxes[-2:-1], truth((2, 0, 1)), "dino", None, {})
    checked_cost(interpreted["matching_cost"], no_queries)
