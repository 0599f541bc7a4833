"""Compile a step's C++ or CUDA file once, and load it with ctypes.

The files are plain C++ with one or two `extern "C"` functions that get a struct of pointers. They include no header of
torch, so each compiles in a second instead of half a minute, under every torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

# -march=native: for this machine alone. Not -ffast-math: NaN must stay NaN. -fopenmp-simd starts no threads; it lets
# the compiler reorder the sums that are marked.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-shared"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
MISSING = "no C++20 compiler: {0} was not found. Install g++ or clang, or name one in the variable CXX."
CUDA_FLAGS = ["-std=c++17", "-O3", "-arch=native", "-shared", "-Xcompiler=-fPIC"]
CUDA_MISSING = "no CUDA compiler: nvcc was not found. Install NVIDIA's CUDA toolkit, or add its bin folder to PATH."


class CompilerMissing(RuntimeError):
    """No C++ compiler was found."""


def compiler(suffix: str = ".cpp") -> list[str]:
    """Return the command of the compiler for a kind of file, with its flags.

    Raises:
        CompilerMissing: there is none.
    """
    if suffix == ".cu":
        if shutil.which("nvcc") is None:
            raise CompilerMissing(CUDA_MISSING)
        return ["nvcc", *CUDA_FLAGS]
    chosen = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(chosen[0]) is None:
        raise CompilerMissing(MISSING.format(repr(chosen[0])))
    return [*chosen, *FLAGS]


def cache_folder() -> Path:
    """Return the folder of compiled steps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dino_kernels" / "tutorial"


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Return the compiled functions of a C++ file; compile it unless a library of the same sources is cached.

    Raises:
        CompilerMissing: there is no compiler, and nothing is cached.
        RuntimeError: the file does not compile.
    """
    headers = sorted({source, *source.parent.glob("*.h"), *source.parent.glob("*.cpp")})  # a file may include any other
    about = [source.name, os.environ.get("CXX", ""), platform.processor(), platform.node(), *FLAGS, *CUDA_FLAGS]
    contents = "\0".join(about).encode() + b"\0".join(path.read_bytes() for path in headers)
    library = cache_folder() / f"{source.stem}-{hashlib.sha256(contents).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            output = Path(folder, library.name)
            command = [*compiler(source.suffix), str(source), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
            output.replace(library)  # in one step: two processes may compile at the same time
    return ctypes.CDLL(str(library))
