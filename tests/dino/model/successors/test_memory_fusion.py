"""Memory fusion: the formula, its share of the gradient, and what it adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dino
from dino.model.encoder import EncoderLayer
from dino.model.successors.memory_fusion import MemoryFusion
from tests.dino.model.test_model import batch, memory_of, tiny


def test_the_memory_is_the_formula_of_input_and_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(memory_fusion=True, num_encoder_layers=3)
    seen: list[Tensor] = []
    forward = EncoderLayer.forward

    def recorded(self: EncoderLayer, tokens: Tensor, *others: Any) -> Tensor:
        result = forward(self, tokens, *others)
        seen.extend([result] if seen else [tokens, result])
        return result

    monkeypatch.setattr(EncoderLayer, "forward", recorded)
    memory = memory_of(model, *batch()).tokens
    fusion = model.encoder.fusion
    assert fusion is not None and len(seen) == 4
    weights, bias = fusion.project.weight.double().split(32, 1), fusion.project.bias.double()
    total = sum(x.double() @ weight.T for x, weight in zip(seen, weights, strict=True)) + bias
    mean, variance = total.mean(-1, keepdim=True), total.var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(memory.double(), (total - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    assert not bias.any()  # as in the public code


def test_gradients() -> None:
    torch.manual_seed(0)
    fusion = MemoryFusion(4, 2).double()
    tokens = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: fusion(x), tokens)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_of_the_encoder_has_a_gradient_of_its_own(checkpointing: bool) -> None:
    model = tiny(memory_fusion=True, num_encoder_layers=3, gradient_checkpointing=checkpointing).train()
    with torch.no_grad():
        assert model.encoder.fusion is not None
        model.encoder.fusion.project.weight[:, 64:] = 0  # all but the input and the first layer
    memory_of(model, *batch()).tokens.square().sum().backward()
    gradients = [layer.get_parameter("ffn.linear1.weight").grad for layer in model.encoder.layers]
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True, False, False]


def test_parameters_of_the_papers_model() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in dino.DINO(dino.model_config("dino_4scale_r50", memory_fusion=on)).parameters())
            for on in (False, True)
        ]
    assert counts[1] - counts[0] == 7 * 256 * 256 + 3 * 256
