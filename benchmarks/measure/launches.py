"""Count what a model starts on a device."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts operations that start work: all but views and allocations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(
            result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
        )
        self.count += not is_view and not func.__name__.startswith(("detach", "empty", "_unsafe_view"))
        return func(*args, **kwargs or {})
