from typing import Any

def build_info() -> dict[str, Any]:
    """Compilers, flags and variants of this build, and what was skipped and why."""

def cpu_capability() -> str:
    """The vector instructions the CPU kernels use on this machine: 'avx512', 'avx2' or 'plain'."""
