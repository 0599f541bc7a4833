"""Moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dino.common.distributed import fill, local

# The average follows the weights closely at first and reaches two thirds of its decay after so many steps.
RAMP_STEPS = 2000


class MovingAverage:
    """Exponential moving average of a model's parameters, sharded as they are.

    After n updates the next one keeps decay * (1 - exp(-(n + 1) / 2000)) of the average: at the start it is the
    weights themselves, not their initialisation.

    Args:
        model: whose parameters are averaged.
        decay: share of the average that an update keeps in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = model
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's parameters as they are now."""
        self.updates += 1
        keep = self.decay * (1 - math.exp(-self.updates / RAMP_STEPS))
        averages = [local(average) for average in self.tensors.values()]
        weights = [local(parameter.detach()) for parameter in self._model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Go on from whole averages by parameter name, made by `updates` updates."""
        self.updates = updates
        for name, average in self.tensors.items():
            fill(average, tensors[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model has the averages for the length of the block, then its own parameters again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            mine, other = local(parameter.detach()), local(self.tensors[name])
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)
