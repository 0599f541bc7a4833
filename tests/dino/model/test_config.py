"""Configurations: bad ones are refused with what is allowed, and no field is dead."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

import dino
from tests.dino.model.criterion_toys import targets_of


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("dino_4scale_r5", {}, "preset must be one of .*perhaps you meant 'dino_4scale_r50'"),
        ("dino_tiny", {"num_quries": 3}, "no field 'num_quries' .perhaps you meant 'num_queries'"),
        ("dino_tiny", {"look_forward": "thrice"}, "look_forward must be one of"),
        ("dino_tiny", {"hidden_dim": 100, "num_heads": 8}, "hidden_dim must be a multiple of num_heads, got 100"),
        ("dino_tiny", {"backbone": "resnet51"}, "backbone must be one of"),
        ("dino_tiny", {"backbone_levels": (3, 1)}, "backbone_levels must be stages 0 to 3 in ascending order"),
        ("dino_tiny", {"num_levels": 2}, "num_levels must be at least len"),
    ],
)
def test_bad_configurations_are_named(preset: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dino.build_model(preset, **overrides)


def test_every_configuration_field_is_read() -> None:
    class Recording(dino.ModelConfig):
        read: ClassVar[set[str]] = set()

        def __getattribute__(self, name: str) -> Any:
            type(self).read.add(name)
            return super().__getattribute__(name)

    fields = {field.name for field in dataclasses.fields(dino.ModelConfig)}
    config = Recording(**dataclasses.asdict(dino.model_config("dino_tiny")))
    Recording.read = set()
    model = dino.DINO(config)
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    model.train()(images, mask, targets_of(1, 2))
    dino.SetCriterion(config)
    assert fields - Recording.read == {"pretrained_backbone"}  # read by build_model
