"""Operations of a forward pass, module by module, by PyTorch's counter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dino_kernels.nn import MSDeformAttn


@dataclass
class Trace:
    """What one forward pass of a detector did."""

    flops: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Operations of each module by its name, those of its children left out; a multiply-add is two."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of the tensor that each module returned last."""
    queries: int = 0
    tokens: int = 0

    def flops_of(self, prefixes: Sequence[str]) -> int:
        """Operations of the modules with these names, children included."""
        return sum(count for name, count in self.flops.items() if under(name, prefixes))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of what a module returned, without the batch dimension."""
        return self.shapes[name][1:] if name in self.shapes else None


def under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a module or parameter is one of some modules, or inside one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def trace_forward(model: nn.Module, images: Tensor, mask: Tensor) -> Trace:
    """Run a detector once in evaluation mode and note what its modules did.

    The model is changed: it is left in evaluation mode, without gradients. It may live under `FakeTensorMode`, where
    nothing is computed.
    """
    model.eval().requires_grad_(False)
    trace = Trace()
    hooks = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        booking = _Booking(trace, counter)
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(booking.entering(name)))
            hooks.append(module.register_forward_hook(booking.leaving(name)))
        try:
            output = model(images, mask)
        finally:
            for hook in hooks:
                hook.remove()
    trace.queries = output.logits.shape[2]
    trace.tokens = trace.shapes.get("encoder", (0, 0))[1]
    return trace


class _Booking:
    """Hooks that book operations to the innermost module that is running."""

    def __init__(self, trace: Trace, counter: FlopCounterMode) -> None:
        self.trace, self.counter = trace, counter
        self.running: list[str] = []
        self.booked = 0

    def entering(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            self._book()
            self.running.append(name)

        return hook

    def leaving(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self._book()
            self.running.pop()
            if isinstance(module, MSDeformAttn):
                # The counter knows neither the op nor grid_sample; this is the same for whichever backend runs.
                self.trace.flops[name] += sampling_flops(module, arguments[0])
            shape = getattr(getattr(output, "tokens", output), "shape", None)
            if shape is not None:
                self.trace.shapes.pop(name, None)  # so that the order is that of ending
                self.trace.shapes[name] = tuple(shape)

        return hook

    def _book(self) -> None:
        total = self.counter.get_total_flops()
        if self.running:
            self.trace.flops[self.running[-1]] += total - self.booked
        self.booked = total


def sampling_flops(attention: MSDeformAttn, query: Tensor) -> int:
    """Operations of the sampling itself: four corners per sample, a multiply-add of each channel for each.

    The weight of a corner takes two multiplications more; the softmax and the sampling positions are not counted, being
    element-wise.
    """
    points = attention.n_points
    samples = sum(points) if isinstance(points, list) else points * attention.n_levels
    channels = attention.d_model // attention.n_heads
    return query.shape[0] * query.shape[1] * attention.n_heads * samples * 4 * (2 * channels + 2)
