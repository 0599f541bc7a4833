"""Mixed precision: where 16 bits are used, and where not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dino.common.device import autocast


class Precision:
    """Autocast of the forward pass, and loss scaling for fp16.

    Args:
        amp: "off", "bf16" or "fp16".
        device_type: "cpu" or "cuda".
    """

    def __init__(self, amp: str, device_type: str) -> None:
        self._context = autocast(device_type, amp)
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the model's forward pass."""
        return self._context()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: bool) -> None:
        """Update the parameters if gradients are `finite`, and adapt the loss scale either way."""
        if finite:
            self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """The scaler's state as JSON values."""
        return self.scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; a run that had no scaler starts with a new one."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
