"""The gradient of attention weights that a module returns but its fused op does not read.

The fused op has a gradient for logits, not for weights. If the caller still holds the weights when the gradient is
computed, it is passed on through them, so that `weights.grad` is what it is where weights are computed first; if not,
it goes to the logits and costs nothing.

With w = softmax(logits), the gradient of logits is g = w (h - <w, h>) for the gradient h of the weights. A head's
output is the sum of w times its samples, so <w, h> is the product of the output and its gradient, and
h = g / w + <w, h>. Where w is 0 in floating point, g is 0 as well, and <w, h> stands for h.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.dtypes import compute_dtype
from dino_kernels.ops._core.eager import are_ordinary


class ReturnedWeights:
    """The weights of one call: pass `logits` to the fused op, and its result to `output`.

    Args:
        weights: softmax of `logits`, which the module returns; [B, Q, M, K] or [B, Q, M, L, P].
        logits: [B, Q, M, K].
    """

    def __init__(self, weights: Tensor, logits: Tensor) -> None:
        self._weights = weakref.ref(weights)
        self._heads = logits.shape[2]
        self.products: Tensor | None = None  # [B, Q, M, 1] of output and its gradient
        self._is_routed = (
            torch.is_grad_enabled()
            and weights.requires_grad
            and not torch.compiler.is_compiling()
            and are_ordinary([weights, logits])
        )
        self.logits: Tensor = _Logits.apply(logits, weights, self) if self._is_routed else logits  # type: ignore[assignment]

    def output(self, output: Tensor) -> Tensor:
        """Return the same output [B, Q, M * D]."""
        return _Output.apply(output, self) if self._is_routed else output  # type: ignore[return-value]

    def are_held(self) -> bool:
        """Return whether anyone can read a gradient of the weights. A second derivative does not go through them."""
        return self._weights() is not None and not torch.is_grad_enabled()

    def multiply(self, output: Tensor, gradient: Tensor) -> None:
        """Store the product of the output and its gradient, of each head."""
        dtype = compute_dtype(output.dtype)
        self.products = (output.to(dtype) * gradient).unflatten(-1, (self._heads, -1)).sum(-1, keepdim=True)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, returned: ReturnedWeights) -> Tensor:
        ctx.returned = returned
        ctx.save_for_backward(weights.detach())  # saving `weights` would hold it
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        products = ctx.returned.products
        if products is None or not ctx.returned.are_held():
            return gradient, None, None
        (weights,) = ctx.saved_tensors
        shares = weights.view_as(gradient)
        of_weights = torch.where(shares > 0, gradient.to(products.dtype) / shares, 0) + products
        return None, of_weights.view_as(weights).to(weights.dtype), None


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, returned: ReturnedWeights) -> Tensor:
        ctx.returned = returned
        ctx.save_for_backward(output)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if ctx.returned.are_held():
            ctx.returned.multiply(*ctx.saved_tensors, gradient)
        return gradient, None
