"""Relation bias against the public code's stored results, and its place in the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dino
from dino.model import decoder as decoder_module
from dino.model.decoder import refine
from dino.model.layers import self_attention
from dino.model.successors.relation_bias import RelationBias
from tests.dino.model.criterion_toys import targets_of
from tests.dino.model.successors.successor_toys import GOLDEN, stored
from tests.dino.model.test_model import batch, grown, memory_of, tiny


def test_the_bias_is_that_of_the_public_code() -> None:
    bias = RelationBias(3).double()
    with torch.no_grad():
        bias.project.weight.copy_((torch.arange(192).double().sin() * 0.3).view(3, 64))
        bias.project.bias.copy_(torch.arange(3).double().cos())
    boxes = stored("boxes")
    expected = torch.tensor(GOLDEN["expected"]["relation"]["bias"]).double()
    found = bias(boxes[:1, :5], boxes[1:, :5])
    assert found.shape == (1, 3, 5, 5) and (expected == 0).any() and (expected > 0).any()
    # The embedding's arguments, up to 300, are float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(bias(boxes[:1, :5], boxes[1:, :5]), found)


def test_angles_are_not_16_bit() -> None:
    """A model in bfloat16 has weights and bias of that type; angles, of up to 1,000, stay float32."""
    torch.manual_seed(0)
    exact, rounded = RelationBias(2), RelationBias(2)
    rounded.load_state_dict({name: x.bfloat16().float() for name, x in exact.state_dict().items()})
    boxes = torch.rand(2, 1, 30, 4) * 0.5 + 0.01
    with torch.no_grad():
        expected, found = rounded(*boxes), rounded.bfloat16()(*boxes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def test_gradients_reach_the_projection_alone() -> None:
    torch.manual_seed(0)
    bias = RelationBias(2).double()
    boxes = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    bias(*boxes).square().sum().backward()
    assert boxes.grad is None or not boxes.grad.any()
    constant = boxes.detach()

    def of_weights(weight: Tensor, offset: Tensor) -> Tensor:
        return torch.func.functional_call(bias, {"project.weight": weight, "project.bias": offset}, tuple(constant))

    weights = [p.detach().clone().requires_grad_() for p in bias.parameters()]
    assert torch.autograd.gradcheck(of_weights, weights)


def test_each_layer_has_the_relation_of_the_boxes_predicted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer has none; denoising groups stay apart; a hybrid branch has none."""
    model = grown(relation_bias=True, num_decoder_layers=3, hybrid_queries=8).train()
    masks: list[Tensor | None] = []

    def recorded(module: torch.nn.MultiheadAttention, query: Tensor, value: Tensor, mask: Any, *rest: Any) -> Tensor:
        masks.append(mask)
        return self_attention(module, query, value, mask, *rest)

    monkeypatch.setattr(decoder_module, "self_attention", recorded)
    torch.manual_seed(3)
    outputs = model(*batch(), targets_of(2, 3))
    assert outputs.denoising is not None and model.decoder.relation is not None
    boxes = torch.cat([outputs.denoising.boxes_cxcywh, outputs.boxes_cxcywh], 2)
    first, second, third, *hybrid = masks
    assert hybrid == [None] * 3 and first is not None and second is not None and third is not None
    blocked = first == -torch.inf
    expected = model.decoder.relation(boxes[0], boxes[1]).masked_fill(blocked, -torch.inf)
    torch.testing.assert_close(third, expected, rtol=1e-4, atol=1e-3)
    assert second.shape == (2, 4, boxes.shape[2], boxes.shape[2])
    assert ((second == -torch.inf) == blocked).all() and (second.masked_fill(blocked, 0) > 0).any()


def test_the_first_relation_starts_from_the_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grown(relation_bias=True).eval()
    calls: list[tuple[Tensor, Tensor]] = []
    forward = RelationBias.forward
    monkeypatch.setattr(RelationBias, "forward", lambda self, *boxes: calls.append(boxes) or forward(self, *boxes))
    memory = memory_of(model, *batch())
    queries = model.query_selection(memory)
    states, references = model.decoder(queries.content, queries.anchors, memory)
    ((before, after),) = calls
    assert torch.equal(before, queries.anchors.sigmoid())
    torch.testing.assert_close(after, refine(model.decoder.box_head, states[0], references[0]))


@pytest.mark.parametrize("switches", [{}, {"shared_heads": False}], ids=str)
def test_every_parameter_gets_a_gradient(switches: dict[str, Any]) -> None:
    model = tiny(relation_bias=True, **switches).train()
    criterion, truth = dino.build_criterion(model.config), targets_of(2, 3)
    criterion.weighted_total(criterion(model(*batch(), truth), truth)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.decoder.relation is not None
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.relation.parameters())
