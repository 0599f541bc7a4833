"""The compiled libraries: loaded at import where they are there, with the reason where they are not."""

from __future__ import annotations

from types import ModuleType


def _load_cpu() -> tuple[ModuleType | None, str | None]:
    try:
        from dino_kernels import _C
    except ImportError as error:
        return None, (
            f"the native CPU library dino_kernels._C did not load ({error}); build it with "
            "'pip install -e .' and see 'python -m dino_kernels'"
        )
    return _C, None


# The extension module, or None; and why it is not there.
C, CPU_MISSING = _load_cpu()
