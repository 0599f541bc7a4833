"""Mixed precision of a training step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dino.common.device import autocast


class Precision:
    """Autocast for the forward pass, and loss scaling for fp16.

    Args:
        amp: "off", "bf16" or "fp16".
        device_type: "cpu" or "cuda".
    """

    def __init__(self, amp: str, device_type: str) -> None:
        self._context = autocast(device_type, amp)
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the model's forward pass."""
        return self._context()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the scaled loss."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, broken: Tensor) -> None:
        """Update the parameters unless `broken`, and the loss scale in any case, without synchronising.

        Args:
            optimizer: a fused one. These take from their attribute `found_inf` whether to change nothing, as
                `torch.amp.GradScaler` passes it.
            broken: float32 [], 1 or 0, on the device.
        """
        optimizer.grad_scale, optimizer.found_inf = None, broken  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """Return the scaler's state as JSON values."""
        return self.scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned; the state of a run without a scaler is ignored."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
