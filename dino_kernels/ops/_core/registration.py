"""Registration: every op is defined once, with its schema, kernel, fake and autograd formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "dino_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any],
) -> torch._ops.OpOverload:
    """Register one op under `torch.ops.dino_kernels`.

    Args:
        schema: `name(Tensor a, ...) -> Tensor`.
        kernel: what runs, on any device; it picks the backend by its `str backend` argument.
        fake: output shapes and dtypes without data, for `torch.compile` and `torch.export`.
        setup_context: saves what `backward` needs.
        backward: the gradient formula. Required: an op without one returns silently wrong second
            derivatives, so ops that cannot be differentiated pass `no_double_backward(name)`.

    Returns:
        The op, ready to be called.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def no_double_backward(op: str) -> Callable[..., Any]:
    """A backward formula for backward ops: second derivatives are refused by name."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: double backward is not implemented by the kernels. Use backend='reference', which "
            "is plain PyTorch and differentiable any number of times."
        )

    return backward


def not_differentiable(op: str) -> Callable[..., Any]:
    """A backward formula for ops whose results have no gradient; their public functions detach the inputs."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{op} has no gradient: call dino_kernels.{op}, which detaches its inputs.")

    return backward
