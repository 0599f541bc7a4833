"""Registration of the public ops: schema, kernel, fake kernel and gradient formula of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.eager import DifferentiableOp, UndifferentiableOp

NAMESPACE = "dino_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define_differentiable(
    backends: Backends,
    arguments: type[Any],
    schema: str,
    *,
    fake: Callable[[Any], Tensor],
    differentiable: Sequence[str],
    convert: Callable[[Any], Any],
) -> DifferentiableOp:
    """Register an op with one output, and its gradient as a second op `<op>_backward`.

    Args:
        backends: the op's; `forward` takes the arguments, `backward` the gradient of the output, the arguments, and a
            flag per differentiable argument, and returns a gradient for each flag, an empty tensor if it is not set.
        arguments: NamedTuple of the arguments.
        schema: schema of the arguments: `Tensor a, int[] b`.
        fake: returns an output without data, for `torch.compile` and `torch.export`.
        differentiable: names of the arguments that have a gradient.
        convert: see `DifferentiableOp`.

    Returns:
        The op for eager calls.
    """
    name, count = backends.op, len(arguments._fields)
    make = functools.partial(tuple.__new__, arguments)  # what `_make` does, without a call of Python
    positions = [arguments._fields.index(field) for field in differentiable]

    def gradient_kernel(grad_output: Tensor, *inputs_requested_backend: Any) -> Any:
        *inputs, requested, backend = inputs_requested_backend
        arguments = make(inputs)
        return backends.module(backend, arguments).backward(grad_output, arguments, requested)

    def gradient_fake(grad_output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        tensors = [inputs[position] for position in positions]
        return tuple(x.new_empty(x.shape if flag else (0,)) for x, flag in zip(tensors, inputs[count], strict=True))

    gradient_op = define(
        f"{name}_backward(Tensor grad_output, {schema}, bool[] wanted, str backend) -> "
        f"({', '.join(['Tensor'] * len(positions))})",
        gradient_kernel,
        gradient_fake,
        backward=no_double_backward(name),
    )
    types = [str(argument.type) for argument in gradient_op._schema.arguments[1 : count + 1]]
    saved = [position for position, type_ in enumerate(types) if "Tensor" in type_]
    others = [position for position in range(count + 1) if position not in saved]  # the backend's name among them
    saved_of, others_of, requested_of = itemgetter(*saved), itemgetter(*others), itemgetter(*positions)
    in_order = itemgetter(*[(saved + others).index(position) for position in range(count + 1)])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*saved_of(inputs))
        ctx.others = others_of(inputs)

    def backward(
        ctx: Any, grad_output: Tensor, gradients: Callable[..., Any] = gradient_op
    ) -> tuple[Tensor | None, ...]:
        *inputs, backend = in_order((*ctx.saved_tensors, *ctx.others))
        requested = list(requested_of(ctx.needs_input_grad))
        grads: list[Tensor | None] = [None] * (count + 1)
        computed = gradients(grad_output, *inputs, requested, backend)
        for position, flag, grad in zip(positions, requested, computed, strict=True):
            if flag:
                grads[position] = grad
        return tuple(grads)

    op = define(
        f"{name}({schema}, str backend) -> Tensor",
        _kernel_of(backends, make),
        _fake_of(make, fake),
        setup_context=setup_context,
        backward=backward,
    )
    return DifferentiableOp(backends, make, convert, op, gradient_kernel, setup_context, backward)


def define_undifferentiable(
    backends: Backends, arguments: type[Any], schema: str, results: str, *, fake: Callable[[Any], Any]
) -> UndifferentiableOp:
    """Register an op without a gradient.

    Args:
        backends, arguments, schema, fake: as in `define_differentiable`, without `backward`.
        results: schema of the results: `(Tensor, Tensor)`.

    Returns:
        The op for eager calls.
    """
    schema = f"{backends.op}({schema}, str backend) -> {results}"
    make = functools.partial(tuple.__new__, arguments)
    kernel, fake = _kernel_of(backends, make), _fake_of(make, fake)
    return UndifferentiableOp(backends, define(schema, kernel, fake, backward=not_differentiable(backends.op)))


def _kernel_of(backends: Backends, make: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    def kernel(*inputs_and_backend: Any) -> Any:
        *inputs, backend = inputs_and_backend
        arguments = make(inputs)
        return backends.module(backend, arguments).forward(arguments)

    return kernel


def _fake_of(make: Callable[[Sequence[Any]], Any], fake: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *inputs_and_backend: fake(make(inputs_and_backend[:-1]))


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
        kernel: runs on any device; it picks the backend by its `str backend` argument.
        fake: returns outputs without data, for `torch.compile` and `torch.export`.
        setup_context: saves the tensors and numbers that `backward` needs.
        backward: the gradient formula. Required, because an op without one returns silently wrong second derivatives;
            ops that cannot be differentiated pass `no_double_backward(name)` or `not_differentiable(name)`.

    Returns:
        The op.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def no_double_backward(op: str) -> Callable[..., Any]:
    """Return a gradient formula for a gradient op, which refuses second derivatives."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: double backward is not implemented by the kernels. Use backend='reference', which "
            "is plain PyTorch and differentiable any number of times."
        )

    return backward


def not_differentiable(op: str) -> Callable[..., Any]:
    """Return a gradient formula for an op whose results have no gradient; its public function detaches the inputs."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{op} has no gradient. Call dino_kernels.{op}, which detaches its inputs.")

    return backward
