"""Find and run NVIDIA's command-line tools, each with a limit of time that also ends its children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure.machine import ROOT

LONGEST_TAIL = 500
FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/nsight-compute/*")


def find(tool: str) -> str | None:
    """Return the path of `nvcc`, `ncu`, `cuobjdump` or the like; None if it is not installed."""
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    for folder in [*homes, *FOLDERS]:
        for path in sorted(glob(f"{folder}/{tool}"), reverse=True):
            if _runs(path):
                return path
    if on_path := shutil.which(tool):
        return on_path
    nvcc, triton = shutil.which("nvcc"), find_spec("triton")
    beside = [Path(nvcc).resolve().parent] if nvcc else []
    bundled = triton.submodule_search_locations or () if triton else ()
    paths = [str(folder / tool) for folder in [*beside, *(Path(root) / "backends/nvidia/bin" for root in bundled)]]
    return next(filter(_runs, paths), None)


def _runs(path: str) -> bool:
    return os.access(path, os.X_OK) and Path(path).is_file()


def run(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None, folder: Path = ROOT
) -> str:
    """Run a command in a folder and return what it printed to standard output.

    Raises:
        RuntimeError: it failed or took longer than `seconds`.
    """
    name = Path(command[0]).name
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{name} took longer than {seconds:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        printed = "\n".join(filter(None, [output.strip(), errors.strip()]))
        raise RuntimeError(f"{name} ended with exit code {process.returncode}: {printed[-LONGEST_TAIL:]}")
    return output
