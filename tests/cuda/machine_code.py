"""PTX and machine code of a source file by function, if nvcc and cuobjdump are found."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.cuda.emulation.build import TORCH_TARGET

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# As setup.py has them.
FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", TORCH_TARGET, f"-I{CSRC}"]
FLAGS += ["-isystem", str(Path(torch.__file__).parent / "include")]


@functools.cache
def find_tool(name: str) -> str | None:
    """Return the path of one of CUDA's programs, of a toolkit or of Triton's copy; None if there is none."""
    folders = [Path(home, "bin") for variable in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(variable))]
    folders += [Path(found).parent] if (found := shutil.which(name)) else []
    folders += [Path("/usr/local/cuda/bin")]
    triton = find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    paths = [folder / name for folder in folders]
    return next((str(path) for path in paths if os.access(path, os.X_OK)), None)


def missing_tools() -> str | None:
    """Return why nothing can be compiled and read here, or None."""
    missing = [name for name in ("nvcc", "cuobjdump") if find_tool(name) is None]
    return f"not found: {', '.join(missing)}" if missing else None


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


def ptx_of(source: Path, folder: Path, architecture: int) -> dict[str, list[str]]:
    """Return each kernel's PTX instructions.

    Args:
        source: a .cu file.
        folder: where intermediate files may be written.
        architecture: 90 for compute_90.
    """
    result = folder / f"{source.stem}_{architecture}.ptx"
    _run([str(find_tool("nvcc")), *FLAGS, f"-arch=compute_{architecture}", "-ptx", str(source), "-o", str(result)])
    parts = re.split(r"\.entry (\w+)\(", result.read_text())
    lines = [
        [" ".join(line.split()) for line in re.findall(r"^\s+([^/.{}\s].*);$", body, re.MULTILINE)]
        for body in parts[2::2]
    ]
    return dict(zip(parts[1::2], lines, strict=True))


def machine_code_of(source: Path, folder: Path, architecture: int) -> dict[str, list[str]]:
    """Return each kernel's instructions, such as "HMMA.16816.F32 R8, R12, R6, R8"; arguments as in `ptx_of`."""
    result = folder / f"{source.stem}_{architecture}.cubin"
    _run([str(find_tool("nvcc")), *FLAGS, f"-arch=sm_{architecture}", "-cubin", str(source), "-o", str(result)])
    parts = re.split(r"Function : (\w+)", _run([str(find_tool("cuobjdump")), "-sass", str(result)]))
    lines = [re.findall(r"/\*[0-9a-f]{4,}\*/\s+(\S.*?)\s*;", body) for body in parts[2::2]]
    return dict(zip(parts[1::2], lines, strict=True))
