"""FLOP formulas of the ops for `torch.utils.flop_counter`, and so for every `FlopCounterMode`.

Importing the counter takes as long as importing this package and loads Triton, so the formulas are registered as soon
as somebody else imports it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"
_CORNERS = 4


def sampling_flops(samples: int, channels: int) -> int:
    """Return the operations of bilinear sampling, a multiply-add counted as two.

    A sample has four corners. Each takes a multiply-add per channel, and two multiplications for its weight. Softmax
    and sampling positions are element-wise and not counted, as in the counter's other formulas.
    """
    return samples * _CORNERS * (2 * channels + 2)


def _forward(value: torch.Size, *rest: Any, out_shape: Any = None) -> int:
    # The weights or logits of the samples, [B, Q, M, K]: the sixth tensor of the classic op, the seventh of the fused.
    weights = next(x for x in reversed(rest) if isinstance(x, torch.Size) and len(x) in (4, 5))
    return sampling_flops(math.prod(weights), value[3])


def _backward(grad_output: torch.Size, value: torch.Size, *rest: Any, out_shape: Any = None) -> int:
    """Return a forward pass for the gradient of value, and one for those of locations and weights."""
    of_value, *of_samples = rest[-2]
    return (of_value + any(of_samples)) * _forward(value, *rest)


def _register() -> None:
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    formulas: dict[str, Any] = {"": _forward, "_backward": _backward}
    for op in ("ms_deform_attn", "fused_ms_deform_attn"):
        for suffix, formula in formulas.items():
            packet = getattr(torch.ops.dino_kernels, op + suffix)
            if packet not in flop_registry:
                register_flop_formula(packet)(formula)


class _AfterImport:
    """A finder that registers the formulas after the counter's import, and then removes itself."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.modules.setdefault(name, module)
                _register()

            spec.loader.exec_module = execute_and_register
        return spec


def register_formulas() -> None:
    """Register the formulas, now if the counter is imported, otherwise when it is."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())
