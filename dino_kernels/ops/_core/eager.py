"""What eager calls skip: the dispatch of an op registered in Python, and argument checks that an earlier call made.

Each takes longer than a small kernel. The registered ops serve what watches or rewrites calls: torch.compile, export,
functorch's transforms, modes, tensor subclasses. All other calls are ordinary: the same kernel and the same gradient
formula are called directly.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

# Calls that are remembered: an encoder's and a decoder's, in training and in evaluation, and as many again.
_LATEST = 8
_ORDINARY_TYPES = (Tensor, torch.nn.Parameter)
# Of a dense tensor outside all modes and transforms. A functionality has one bit for all devices.
_ORDINARY_KEYS = DispatchKeySet(DispatchKey.CPU)
for _name in ("BackendSelect", "ADInplaceOrView", "AutogradCPU", "AutocastCPU", "AutocastCUDA", "AutocastXPU"):
    _ORDINARY_KEYS = _ORDINARY_KEYS | DispatchKeySet(getattr(DispatchKey, _name))


class _Guards(Protocol):
    """Tells whether tensors are like those of an earlier call, which it does not keep."""

    def check(self, *tensors: Any) -> bool: ...


def exactly(*numbers: Any) -> bytes | None:
    """Return lists and tuples of integers as bytes, which tell 4 from 4.0; None where there is anything else."""
    try:
        return marshal.dumps(numbers, 2)
    except ValueError:
        return None


class SeenCalls:
    """The latest ordinary calls, and what was found out about each. Keeps no tensor.

    A finding holds for a call with an equal key if its tensors have the same classes, dtypes, devices, sizes and
    strides, the same `requires_grad` and the same dispatch keys, which depend on inference mode and autocast.

    Args:
        any_sizes: sizes and strides may differ.
    """

    def __init__(self, *, any_sizes: bool = False) -> None:
        self._any_sizes = any_sizes
        # Replaced as a whole: a thread may lose what another one added, and sees nothing half done.
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
        """Remember the finding about this call, which is an ordinary one."""
        self._calls = ((key, _guards_of(tensors, self._any_sizes), finding), *self._calls[: _LATEST - 1])


class Backends(Protocol):
    """What `EagerOp` asks of `_dispatch.Backends`."""

    modules: dict[str, Any]
    prepare: Callable[..., tuple[Any, ...]]

    def resolve(self, requested: str, arguments: tuple[Any, ...]) -> str: ...


class EagerOp:
    """An op of deformable attention, behind the checks of its arguments and the choice of a backend.

    Args:
        backends: the op's; `prepare` checks arguments and settles their dtypes.
        settle: settles the dtypes of arguments that need no check.
        op: the registered op; takes what `prepare` returns and the name of a backend.
        setup_context, backward: its gradient formula. `backward` takes the op's gradient op as its last argument.
    """

    def __init__(
        self,
        backends: Backends,
        settle: Callable[..., tuple[Any, ...]],
        op: torch._ops.OpOverload,
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        self._backends = backends
        self._settle = settle
        self._op = op
        self._seen = SeenCalls()
        self._apply = _differentiable(backends, op, setup_context, backward)

    def __call__(self, given: Sequence[Any], num_points: Sequence[int] | None, backend: str) -> Tensor:
        """Return the op's result for value, spatial_shapes, level_start_index and the samples' tensors.

        Classes, dtypes and shapes are checked once for all calls that are alike; in each one the backend is asked
        whether it runs it, and its kernel checks the numbers inside of tensors.
        """
        if is_watched():
            name, arguments = self._check(given, num_points, backend)
            return self._op(*arguments, name) if name != "reference" else self._run(name, arguments, False)
        deterministic = torch.are_deterministic_algorithms_enabled()  # which a backend may refuse
        key = exactly(backend, deterministic, num_points, *[... if isinstance(x, Tensor) else x for x in given])
        tensors = [x for x in given if isinstance(x, Tensor)]
        seen = self._seen.find(key, tensors) if key else None
        if seen is not None:
            sizes, counts, name, as_given, differentiable = seen
            value, shapes, starts, *samples = given
            arguments = (value, None if sizes else shapes, sizes, starts, counts, *samples)
            if not as_given:
                arguments = self._settle(*arguments)
            module = self._backends.modules.get(name)
            if module and module.unsupported(*arguments) is None:
                return self._run(name, arguments, differentiable)
        name, arguments = self._check(given, num_points, backend)
        if name == "reference":
            return self._run(name, arguments, False)
        if not are_ordinary(tensors):
            return self._op(*arguments, name)
        differentiable = is_differentiable(tensors)
        _, _, sizes, _, counts, *samples = arguments
        # In an array's place the key has its bytes alone.
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
        return self._backends.modules[name].forward(*arguments)


def _have_same_elements(given: Tensor | None, settled: Tensor | None) -> bool:
    """Whether an argument was left as it was, but for its sample dimensions, which backends take as one or as two."""
    if given is None or settled is None:
        return given is settled
    return given.dtype == settled.dtype and given.numel() == settled.numel()


class UndifferentiableOp:
    """A registered op without a gradient, whose kernel ordinary calls reach directly.

    Args:
        op: the registered op.
        kernel: what it runs.
    """

    def __init__(self, op: torch._ops.OpOverload, kernel: Callable[..., Any]) -> None:
        self._op = op
        self._kernel = kernel
        self._seen = SeenCalls(any_sizes=True)

    def __call__(self, *arguments: Any) -> Any:
        """Return the op's result for its own arguments, tensors and lists of tensors among them."""
        if is_watched():
            return self._op(*arguments)
        tensors = [x for y in arguments for x in (y if isinstance(y, list) else (y,)) if isinstance(x, Tensor)]
        key = len(tensors)
        if not self._seen.find(key, tensors):
            if is_differentiable(tensors) or not are_ordinary(tensors):
                return self._op(*arguments)
            self._seen.add(key, tensors, True)
        return self._kernel(*arguments)


def _differentiable(
    backends: Backends, op: torch._ops.OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Tensor]:
    """Return what the registered op does with its arguments where a gradient is needed, without the op."""
    ordinary_gradients = SeenCalls(any_sizes=True)

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, name = arguments
        output = backends.modules[name].forward(*inputs)
        setup_context(ctx, arguments, output)
        return output

    def gradient_kernel(grad_output: Tensor, *arguments: Any) -> Any:
        *inputs, name = arguments
        return backends.modules[name].backward(grad_output, *inputs)

    def direct_backward(ctx: Any, grad_output: Tensor) -> Any:
        # What was saved is as it was: no hook had it. With grad mode, the gradient op refuses second derivatives.
        if torch.is_grad_enabled() or is_watched():
            return backward(ctx, grad_output)
        tensors = (grad_output,)
        if not ordinary_gradients.find(None, tensors):
            if not are_ordinary(tensors):
                return backward(ctx, grad_output)
            ordinary_gradients.add(None, tensors, True)
        return backward(ctx, grad_output, gradient_kernel)

    # Under the name that registration gives it.
    name = f"GeneratedBackwardFor_{op._namespace}_{op._opname}_{op._overloadname}"
    members = {"forward": staticmethod(forward), "backward": staticmethod(direct_backward)}
    function: Any = type(name, (torch.autograd.Function,), members)
    # Past the search for functorch's tensors in Function.apply: an ordinary call has none.
    base: Any = super(torch.autograd.Function, function)
    return base.apply


def is_differentiable(tensors: Sequence[Tensor]) -> bool:
    """Return whether autograd records a call with these tensors where grad mode is enabled."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    return any(x.requires_grad for x in tensors) and not excluded.has(DispatchKey.AutogradFunctionality)


def is_watched() -> bool:
    """Return whether a compiler, a mode or a hook sees every call. Of all others that do, dispatch keys tell.

    Hooks of saved tensors, such as checkpoint's, must meet the same tensors whatever else is active.
    """
    return torch.compiler.is_dynamo_compiling() or not _AVAILABLE or _is_watched_in_eager()


def _is_watched_in_eager() -> bool:
    return bool(
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    )


def are_ordinary(tensors: Sequence[Tensor]) -> bool:
    """Return whether a registered op of these tensors would only call its kernel, and autograd where it is needed."""
    active = torch._C._dispatch_tls_local_include_set()
    return all(
        type(tensor) in _ORDINARY_TYPES
        and ((torch._C._dispatch_keys(tensor) | active) - _ORDINARY_KEYS).highestPriorityTypeId()
        == DispatchKey.Undefined
        for tensor in tensors
    )


def _guards_of(tensors: Sequence[Tensor], any_sizes: bool) -> _Guards:
    """torch.compile's own guards of its arguments: one call compares everything that `SeenCalls` promises."""
    from torch._C._dynamo.guards import TensorGuards

    guards: Any = TensorGuards
    sizes = [[None] * tensor.dim() for tensor in tensors] if any_sizes else None
    return guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=sizes)


def _is_available() -> bool:
    """Whether this torch has what tells ordinary calls apart, which is not public. Without it, none is ordinary."""
    probe = torch.empty(0, device="cpu")
    try:
        _is_watched_in_eager()
        are_ordinary([probe])
        return _guards_of([probe], False).check(probe) and _guards_of([probe], True).check(probe)
    except (AttributeError, ImportError, TypeError):
        return False


_AVAILABLE = _is_available()
