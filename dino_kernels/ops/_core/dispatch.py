"""The choice of the backend that runs a call, and why the others do not."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dino_kernels.ops._core import libraries

# Runs every call, but "auto" takes it on a CPU only: on a GPU it is twenty times slower than the kernels, which a user
# should not get without notice.
REFERENCE = "reference"
AUTO = "auto"


class UnsupportedError(RuntimeError):
    """No backend, or not the requested one, can run a call; the message gives every reason."""


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`: the backend that a call would use, and the reasons against the others."""

    op: str
    backend: str | None
    reasons: dict[str, str | None]  # backend -> why it cannot run this call, or None

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend or 'no backend'}"]
        for name, reason in self.reasons.items():
            chosen = "*" if name == self.backend else " "
            lines.append(f" {chosen} {name:<10} {reason or 'supported'}")
        return "\n".join(lines)


class Backends:
    """The backends of one op.

    Args:
        op: name of the public function.
        prepare: checks the public function's arguments and returns the named tuple that backends take.
        **modules: backends by name; "auto" takes the first one that supports a call. CUDA before Triton is a guess:
            no GPU has compared them.
    """

    def __init__(self, op: str, prepare: Callable[..., tuple[Any, ...]], **modules: Any) -> None:
        self.op = op
        self.prepare = prepare
        self.modules = modules
        _REGISTRY[op] = self

    def unsupported(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        """Return why a backend cannot run this call, or None."""
        if name not in self.modules:
            return f"{self.op} has no backend {name!r}"
        return None if name == REFERENCE else self.modules[name].unsupported(arguments)

    def resolve(self, requested: str, arguments: tuple[Any, ...]) -> str:
        """Return the name of the backend that runs this call. Warn if only the missing library leaves the reference.

        Raises: as `choose`.
        """
        name = self.choose(requested, arguments)
        missing = libraries.CPU_MISSING
        if name == REFERENCE != requested and missing is not None and self.unsupported("cpu", arguments) == missing:
            _warn_of_missing_kernels(missing)
        return name

    def module(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return the backend that a registered op runs. An exported program has "auto": it chooses where it runs."""
        return self.modules[self.resolve(name, arguments) if name == AUTO else name]

    def choose(self, requested: str, arguments: tuple[Any, ...]) -> str:
        """Return the name of the backend that runs this call.

        Raises:
            ValueError: `requested` names no backend.
            UnsupportedError: the requested backend cannot run the call, or none can.
        """
        if requested == AUTO:
            on_cpu = device_of(arguments).type == "cpu"
            for name in self.modules:
                if (on_cpu or name != REFERENCE) and self.unsupported(name, arguments) is None:
                    return name
            raise UnsupportedError(self._refusal(arguments))
        if not isinstance(requested, str) or requested not in self.modules:
            allowed = ", ".join(repr(name) for name in (AUTO, *self.modules))
            raise ValueError(f"{self.op}: backend must be one of {allowed}, got {requested!r}")
        reason = self.unsupported(requested, arguments)
        if reason is not None:
            raise UnsupportedError(f"{self.op}: backend {requested!r} cannot run this call: {reason}")
        return requested

    def reasons(self, arguments: tuple[Any, ...]) -> dict[str, str | None]:
        """Return why each backend cannot run this call, or None."""
        return {name: self.unsupported(name, arguments) for name in self.modules}

    def _refusal(self, arguments: tuple[Any, ...]) -> str:
        device = device_of(arguments)
        lines = [f"{self.op}: no backend can run this call on {device}:"]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons(arguments).items() if reason]
        lines.append("Pass backend='reference' to run the plain PyTorch definition instead (slow).")
        return "\n".join(lines)


def device_of(arguments: tuple[Any, ...]) -> torch.device:
    """Return the device of a call: that of its first tensor."""
    first = arguments[0]
    return (first[0] if isinstance(first, list) else first).device


_warned: set[str] = set()


def _warn_of_missing_kernels(reason: str) -> None:
    """Warn once per process."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            "dino_kernels runs its plain PyTorch definitions on this CPU, about 30 times slower than its kernels: "
            f"{reason}. Pass backend='reference' to run them without this warning.",
            RuntimeWarning,
            stacklevel=3,
        )


# The effect of `torch.compiler.assume_constant_result`, which would import the compiler: it is called at tracing.
_warn_of_missing_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]

_REGISTRY: dict[str, Backends] = {}


def ops() -> dict[str, Backends]:
    """Return every op's backends, by the op's name."""
    return dict(_REGISTRY)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Find the backend that a call would use, and the reasons against the others. Computes nothing.

    Args:
        function: a public function, such as `dino_kernels.ms_deform_attn`.
        *args: positional arguments of the call.
        **kwargs: keyword arguments of the call, including `backend`.

    Returns:
        An `Explanation`; print it.

    Raises:
        TypeError: `function` is not one of this package's ops, or does not take these arguments.
        ValueError: an argument is malformed, as in the call.
    """
    backends = _REGISTRY.get(getattr(function, "__name__", ""))
    if backends is None:
        known = ", ".join(_REGISTRY)
        raise TypeError(f"explain: function must be one of {known}, got {function!r}")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"explain: {backends.op}: {error}") from None
    requested = kwargs.pop("backend", "auto")
    arguments = backends.prepare(*args, **kwargs)
    try:
        chosen = backends.choose(requested, arguments)
    except UnsupportedError:
        chosen = None
    with torch.no_grad():
        return Explanation(backends.op, chosen, backends.reasons(arguments))
