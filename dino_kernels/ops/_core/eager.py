"""The eager path: without the dispatch of an op registered in Python, and without checks that an earlier call passed.

Each takes longer than a small kernel. The registered ops are for whatever observes or rewrites calls: torch.compile,
export, functorch's transforms, modes, tensor subclasses. All other calls are ordinary: they reach the same kernel and
gradient formula directly.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from dino_kernels.ops._core.dispatch import AUTO, REFERENCE, Backends

# Remembered calls: those of an encoder and a decoder, in training and in evaluation, and as many again.
_LATEST = 8
ORDINARY_TYPES = frozenset((Tensor, torch.nn.Parameter))
# Dispatch keys of a dense tensor outside all modes and transforms. A functionality has one bit for all devices.
_ORDINARY_KEYS = DispatchKeySet(DispatchKey.CPU)
for _name in ("BackendSelect", "ADInplaceOrView", "AutogradCPU", "AutocastCPU", "AutocastCUDA", "AutocastXPU"):
    _ORDINARY_KEYS = _ORDINARY_KEYS | DispatchKeySet(getattr(DispatchKey, _name))


class _Guards(Protocol):
    """Compares tensors with those of an earlier call, which it does not keep."""

    def check(self, *tensors: Any) -> bool: ...


def exactly(*numbers: Any) -> bytes | None:
    """Return lists and tuples of integers as bytes, which differ for 4 and 4.0; None if there is anything else."""
    try:
        return marshal.dumps(numbers, 2)
    except ValueError:
        return None


class SeenCalls:
    """The latest ordinary calls and a finding about each. Keeps no tensor.

    A finding holds for a call with an equal key if its tensors have the same classes, dtypes, devices, sizes and
    strides, the same `requires_grad` and the same dispatch keys, which depend on inference mode and autocast.

    Args:
        any_sizes: sizes and strides may differ.
    """

    def __init__(self, *, any_sizes: bool = False) -> None:
        self._any_sizes = any_sizes
        # Replaced as a whole: a thread may lose the addition of another one, but never reads an unfinished change.
        self._calls: tuple[tuple[Any, _Guards, Any], ...] = ()

    def find(self, key: Any, tensors: Sequence[Tensor]) -> Any:
        """Return the finding about an earlier call like this one, or None."""
        calls = self._calls
        for call in calls:
            known, guards, finding = call
            if known == key and guards.check(*tensors):
                if call is not calls[0]:
                    self._calls = (call, *(other for other in calls if other is not call))
                return finding
        return None

    def add(self, key: Any, tensors: Sequence[Tensor], finding: Any) -> None:
        """Remember the finding about this call, which must be ordinary."""
        self._calls = ((key, _guards_of(tensors, self._any_sizes), finding), *self._calls[: _LATEST - 1])


class DifferentiableOp:
    """An op of deformable attention, which checks its arguments and chooses the backend.

    Args:
        backends: the op's; `prepare` checks arguments and converts their dtypes.
        make: makes the named tuple of the arguments from their values.
        convert: converts the dtypes of checked arguments.
        op: the registered op; takes the result of `prepare` and the name of a backend.
        gradient_kernel: the kernel of the gradient op.
        setup_context, backward: gradient formula of `op`. The last argument of `backward` is the gradient op.
    """

    def __init__(
        self,
        backends: Backends,
        make: Callable[[Sequence[Any]], Any],
        convert: Callable[[Any], Any],
        op: torch._ops.OpOverload,
        gradient_kernel: Callable[..., Any],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        self._backends = backends
        self._make = make
        self._convert = convert
        self._op = op
        self._seen = SeenCalls()
        self._apply = _differentiable(backends, make, op, gradient_kernel, setup_context, backward)

    def __call__(self, given: Sequence[Any], num_points: Sequence[int] | None, backend: str) -> Tensor:
        """Return the op's result for value, spatial_shapes, level_start_index and the samples' tensors.

        Calls that are alike are checked once: classes, dtypes and shapes. Each call checks that the backend supports
        it, and its kernel checks the numbers in tensors.
        """
        if is_observed():
            if backend == AUTO and torch.compiler.is_exporting():
                return self._op(*self._backends.prepare(*given, num_points=num_points), AUTO)
            name, arguments = self._check(given, num_points, backend)
            return self._op(*arguments, name) if name != REFERENCE else self._run(name, arguments, False)
        deterministic = torch.are_deterministic_algorithms_enabled()  # not every backend supports it
        key = exactly(backend, deterministic, num_points, *[... if isinstance(x, Tensor) else x for x in given])
        tensors = [x for x in given if isinstance(x, Tensor)]
        seen = self._seen.find(key, tensors) if key else None
        if seen is not None:
            sizes, counts, name, as_given, differentiable = seen
            value, shapes, starts, *samples = given
            arguments = self._make((value, None if sizes else shapes, sizes, starts, counts, *samples))
            if not as_given:
                arguments = self._convert(arguments)
            module = self._backends.modules.get(name)
            if module and module.unsupported(arguments) is None:
                return self._run(name, arguments, differentiable)
        name, arguments = self._check(given, num_points, backend)
        if name == REFERENCE:
            return self._run(name, arguments, False)
        if not are_ordinary(tensors):
            return self._op(*arguments, name)
        differentiable = is_differentiable(tensors)
        _, _, sizes, _, counts, *samples = arguments
        # The key has only the bytes of an array, not its shape.
        if key and all(type(number) is int for number in (*sizes, *counts)):
            as_given = all(_have_same_elements(*both) for both in zip(given[3:], samples, strict=True))
            self._seen.add(key, tensors, (sizes, counts, name, as_given, differentiable))
        return self._run(name, arguments, differentiable)

    def _check(
        self, given: Sequence[Any], num_points: Sequence[int] | None, backend: str
    ) -> tuple[str, tuple[Any, ...]]:
        arguments = self._backends.prepare(*given, num_points=num_points)
        return self._backends.resolve(backend, arguments), arguments

    def _run(self, name: str, arguments: tuple[Any, ...], differentiable: bool) -> Tensor:
        if differentiable and torch.is_grad_enabled():
            return self._apply(*arguments, name)
        return self._backends.modules[name].forward(arguments)


def _have_same_elements(given: Tensor | None, converted: Tensor | None) -> bool:
    """Return whether an argument is unchanged up to its sample dimensions, which backends take as one or as two."""
    if given is None or converted is None:
        return given is converted
    return given.dtype == converted.dtype and given.numel() == converted.numel()


class UndifferentiableOp:
    """An op without a gradient, which chooses the backend.

    Args:
        backends: the op's.
        op: the registered op; takes the result of `backends.prepare` and the name of a backend.
    """

    def __init__(self, backends: Backends, op: torch._ops.OpOverload) -> None:
        self._backends = backends
        self._op = op
        self._seen = SeenCalls(any_sizes=True)

    def __call__(self, arguments: tuple[Any, ...], backend: str) -> Any:
        """Return the op's result for the result of `backends.prepare`."""
        name = self._backends.resolve(backend, arguments)
        module = self._backends.modules[name]
        if name == REFERENCE:
            return module.forward(arguments)
        if is_observed():
            return self._op(*arguments, name)
        tensors = [x for y in arguments for x in (y if isinstance(y, list) else (y,)) if isinstance(x, Tensor)]
        key = len(tensors)
        if not self._seen.find(key, tensors):
            if is_differentiable(tensors) or not are_ordinary(tensors):
                return self._op(*arguments, name)
            self._seen.add(key, tensors, True)
        return module.forward(arguments)


def _differentiable(
    backends: Backends,
    make: Callable[[Sequence[Any]], Any],
    op: torch._ops.OpOverload,
    gradient_kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Tensor]:
    """Return a function that computes the same as the op, and records the same gradient, without calling the op."""
    ordinary_gradients = SeenCalls(any_sizes=True)

    def forward(ctx: Any, *inputs_and_backend: Any) -> Tensor:
        output = backends.modules[inputs_and_backend[-1]].forward(make(inputs_and_backend[:-1]))
        setup_context(ctx, inputs_and_backend, output)
        return output

    def direct_backward(ctx: Any, grad_output: Tensor) -> Any:
        # Saved tensors are ordinary, because no hook changed them. In grad mode the gradient op must run: it refuses
        # second derivatives.
        if torch.is_grad_enabled() or is_observed():
            return backward(ctx, grad_output)
        tensors = (grad_output,)
        if not ordinary_gradients.find(None, tensors):
            if not are_ordinary(tensors):
                return backward(ctx, grad_output)
            ordinary_gradients.add(None, tensors, True)
        return backward(ctx, grad_output, gradient_kernel)

    # The name that PyTorch gives the node of a registered op.
    name = f"GeneratedBackwardFor_{op._namespace}_{op._opname}_{op._overloadname}"
    members = {"forward": staticmethod(forward), "backward": staticmethod(direct_backward)}
    function: Any = type(name, (torch.autograd.Function,), members)
    # Skip Function.apply's search for functorch's tensors: an ordinary call has none.
    base: Any = super(torch.autograd.Function, function)
    return base.apply


def is_differentiable(tensors: Sequence[Tensor]) -> bool:
    """Return whether autograd records a call with these tensors where grad mode is enabled."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    return any(x.requires_grad for x in tensors) and not excluded.has(DispatchKey.AutogradFunctionality)


def is_observed() -> bool:
    """Return whether a compiler, a mode or a hook observes every call; dispatch keys show all other observers.

    Hooks of saved tensors, such as those of checkpoint, must see the same tensors whatever else is active.
    """
    return torch.compiler.is_dynamo_compiling() or not _AVAILABLE or _is_observed_in_eager()


def _is_observed_in_eager() -> bool:
    return bool(
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    )


def are_ordinary(tensors: Sequence[Tensor]) -> bool:
    """Return whether a registered op would do nothing with these tensors but call its kernel and autograd."""
    active = torch._C._dispatch_tls_local_include_set()
    return all(
        type(tensor) in ORDINARY_TYPES
        and ((torch._C._dispatch_keys(tensor) | active) - _ORDINARY_KEYS).highestPriorityTypeId()
        == DispatchKey.Undefined
        for tensor in tensors
    )


def _guards_of(tensors: Sequence[Tensor], any_sizes: bool) -> _Guards:
    """Return torch.compile's guards for tensors: one call compares everything that `SeenCalls` lists."""
    from torch._C._dynamo.guards import TensorGuards

    guards: Any = TensorGuards
    sizes = [[None] * tensor.dim() for tensor in tensors] if any_sizes else None
    return guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=sizes)


def _is_available() -> bool:
    """Return whether this torch has the private functions that recognise ordinary calls; if not, none is ordinary."""
    probe = torch.empty(0, device="cpu")
    try:
        _is_observed_in_eager()
        are_ordinary([probe])
        return _guards_of([probe], False).check(probe) and _guards_of([probe], True).check(probe)
    except (AttributeError, ImportError, TypeError):
        return False


_AVAILABLE = _is_available()
