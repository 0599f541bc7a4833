"""A second copy of a backend module under another name: the same Python file over other kernels."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def second_copy(op: str, backend: str, name: str, **replaced: Any) -> ModuleType:
    """Execute `dino_kernels.ops.<op>.<backend>` again as `<name>_<op>`, and replace some of its names."""
    original = importlib.import_module(f"dino_kernels.ops.{op}.{backend}")
    assert original.__file__
    spec = importlib.util.spec_from_file_location(f"{name}_{op}", original.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks it up there
    spec.loader.exec_module(module)
    vars(module).update(replaced)
    return module
