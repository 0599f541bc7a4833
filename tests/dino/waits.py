"""Find what synchronises with a GPU, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Assignments(TorchFunctionMode):
    """Counts numbers that are assigned to chosen entries, `x[rows] = 1`: to a GPU they are copied, with a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
            chosen = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, torch.Tensor) and part.dtype != torch.bool for part in chosen):
                self.found.append(args[2])
        return func(*args, **kwargs or {})


class Waits(TorchDispatchMode):
    """Counts what synchronises with a GPU: numbers that the host reads, and results whose size depends on values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2]
        chosen = args[1] if name.startswith(("index.", "index_put")) else ()
        masks = [part for part in chosen if part is not None and part.dtype == torch.bool]
        if name.split(".")[0] in self.READS or masks:
            self.found.append(name)
        return func(*args, **kwargs or {})
