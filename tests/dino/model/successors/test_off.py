"""Without a switch, the model and its losses are DINO's of 2022: nothing of the successors runs, or is built."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from typing import Any

import pytest
import torch

import dino
import dino.model.successors
from tests.dino.model.criterion_toys import targets_of
from tests.dino.model.successors.successor_toys import ALL

MODULES = [
    importlib.import_module(f"dino.model.successors.{module.name}")
    for module in pkgutil.iter_modules(dino.model.successors.__path__)
]


def step_of(model: dino.DINO) -> list[torch.Tensor]:
    """Return the losses of a step, and its gradients."""
    torch.manual_seed(1)
    images, mask, truth = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool), targets_of(2, 3)
    criterion = dino.build_criterion(model.config)
    losses = criterion(model(images, mask, truth), truth)
    criterion.weighted_total(losses).backward()
    return [losses.table.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def model_of(**switches: Any) -> dino.DINO:
    torch.manual_seed(0)
    return dino.build_model("dino_tiny", num_queries=12, **switches).train()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("ran without a switch")


def test_nothing_of_the_successors_runs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = step_of(model_of())
    places = [module for name, module in sys.modules.items() if name.startswith("dino.model.")]
    replaced = []
    for home in MODULES:
        own = [value for value in vars(home).values() if getattr(value, "__module__", None) == home.__name__]
        for value in own:
            for place in places:
                if vars(place).get(value.__name__) is value and place is not home:
                    monkeypatch.setattr(place, value.__name__, refuse)
                    replaced.append(home)
    assert set(replaced) == set(MODULES)
    assert all(torch.equal(a, b) for a, b in zip(step_of(model_of()), expected, strict=True))
    with pytest.raises(AssertionError, match="ran without a switch"):
        step_of(model_of(**ALL))


def test_switches_are_off_by_default() -> None:
    off = dino.ModelConfig()
    for preset in ("dino_4scale_r50", "dino_5scale_r50", "dino_4scale_swin_l", "dino_tiny"):
        config = dino.PRESETS[preset]
        assert all(getattr(config, name) == getattr(off, name) for name in ALL), preset
    assert all(value != getattr(off, name) for name, value in ALL.items())
    plain, named = model_of(), model_of(**{name: getattr(off, name) for name in ALL})
    assert plain.config == named.config and list(plain.state_dict()) == list(named.state_dict())


def test_unknown_values_are_refused() -> None:
    for name in ("classification", "match_cost"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            dino.model_config("dino_tiny", **{name: "positions"})
    with pytest.raises(ValueError, match="class_weight must be a finite number, at least 0, got -1"):
        dataclasses.replace(dino.PRESETS["dino_tiny"], class_weight=-1)
