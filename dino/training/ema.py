"""Average the weights over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dino.common.distributed import full_model_state, load_full_model_state, local_shard

# The average follows the weights closely at first and reaches two thirds of its decay after this many steps.
RAMP_STEPS = 2000


class MovingAverage:
    """Exponential moving average of a model's parameters, sharded like them.

    After n updates the next one keeps decay * (1 - exp(-(n + 1) / 2000)) of the average, so that the initialisation of
    the weights is forgotten quickly.

    Args:
        model: the model whose parameters are averaged.
        decay: share of the average that an update keeps in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = model
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average."""
        self.updates += 1
        keep = self.decay * (1 - math.exp(-self.updates / RAMP_STEPS))
        averages = [local_shard(average) for average in self.tensors.values()]
        weights = [local_shard(parameter.detach()) for parameter in self._model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    def full_state(self) -> dict[str, Tensor]:
        """Return full copies of the averages on the CPU of the first process, empty elsewhere. Collective."""
        with self.in_model():
            state = full_model_state(self._model)
            # A copy, because on a CPU these are the model's own tensors.
            return {name: state[name].clone() for name in self.tensors if name in state}

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Load full averages by parameter name, made by `updates` updates. Collective."""
        self.updates = updates
        with self.in_model():
            load_full_model_state(self._model, tensors, strict=False)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Give the model the averages for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            weight, average = local_shard(parameter.detach()), local_shard(self.tensors[name])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
