"""Which backend runs a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# "auto" takes the first of these that supports the call; that CUDA comes before Triton is not measured yet. The
# reference comes last and only on CPU: on a GPU a silent fall to something twenty times slower is a bug report, not a
# service.
PREFERENCE = ("cuda", "triton", "cpu", "reference")


class UnsupportedError(RuntimeError):
    """No backend, or not the requested one, can run this call; the message gives every reason."""


class Backend(Protocol):
    """A backend module: `forward`, `backward`, and the reason why it cannot run a call."""

    def unsupported(self, *arguments: Any) -> str | None: ...


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: the backend that a call would use, and a reason for each other one."""

    op: str
    backend: str | None
    reasons: dict[str, str | None]  # backend -> why it cannot run this call; None where it can

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend or 'no backend'}"]
        for name, reason in self.reasons.items():
            chosen = "*" if name == self.backend else " "
            lines.append(f" {chosen} {name:<10} {reason or 'supported'}")
        return "\n".join(lines)


class Backends:
    """The backends of one op, by name.

    `prepare` is the op's argument normalisation: it turns the public function's arguments into the
    tuple that the backends see.
    """

    def __init__(self, op: str, prepare: Callable[..., tuple[Any, ...]], **modules: Any) -> None:
        self.op = op
        self.prepare = prepare
        self.modules = modules
        _REGISTRY[op] = self

    def __getitem__(self, name: str) -> Any:
        return self.modules[name]

    def unsupported(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        return self.modules[name].unsupported(*arguments)

    def resolve(self, requested: str, arguments: tuple[Any, ...]) -> str:
        """The name of the backend that runs this call.

        Raises:
            ValueError: `requested` names no backend.
            UnsupportedError: the requested backend cannot run the call, or none can.
        """
        if requested == "auto":
            on_cpu = device_of(arguments).type == "cpu"
            for name in PREFERENCE:
                if name == "reference" and not on_cpu:
                    continue
                if name in self.modules and self.unsupported(name, arguments) is None:
                    return name
            raise UnsupportedError(self._refusal(arguments))
        if requested not in self.modules:
            allowed = ", ".join(repr(name) for name in ("auto", *self.modules))
            raise ValueError(f"{self.op}: backend must be one of {allowed}, got {requested!r}")
        reason = self.unsupported(requested, arguments)
        if reason is not None:
            raise UnsupportedError(f"{self.op}: backend {requested!r} cannot run this call: {reason}")
        return requested

    def reasons(self, arguments: tuple[Any, ...]) -> dict[str, str | None]:
        return {name: self.unsupported(name, arguments) for name in PREFERENCE if name in self.modules}

    def _refusal(self, arguments: tuple[Any, ...]) -> str:
        device = device_of(arguments)
        lines = [f"{self.op}: no backend can run this call on {device}:"]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons(arguments).items() if reason]
        lines.append("Pass backend='reference' to run the plain PyTorch definition instead (slow).")
        return "\n".join(lines)


def device_of(arguments: tuple[Any, ...]) -> torch.device:
    """Where a call runs: where its first tensor is."""
    first = arguments[0]
    return (first[0] if isinstance(first, list) else first).device


_REGISTRY: dict[str, Backends] = {}


def ops() -> dict[str, Backends]:
    """Every op's backends, by the op's name."""
    return dict(_REGISTRY)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Tell which backend a call would use, and why the others would not run it. Computes nothing.

    Args:
        function: a public function, such as `dino_kernels.ms_deform_attn`.
        *args: the arguments of the call, as the function itself takes them.
        **kwargs: its keyword arguments; `backend` is honoured.

    Returns:
        An `Explanation`; print it.

    Raises:
        TypeError: `function` is not one of this package's ops.
        ValueError: an argument is malformed, as in the call itself.
    """
    backends = _REGISTRY.get(getattr(function, "__name__", ""))
    if backends is None:
        known = ", ".join(_REGISTRY)
        raise TypeError(f"explain: function must be one of {known}, got {function!r}")
    requested = kwargs.pop("backend", "auto")
    arguments = backends.prepare(*args, **kwargs)
    try:
        chosen = backends.resolve(requested, arguments)
    except UnsupportedError:
        chosen = None
    with torch.no_grad():
        return Explanation(backends.op, chosen, backends.reasons(arguments))
