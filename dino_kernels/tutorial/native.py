"""Compile a step's C++ file once, and load it with ctypes.

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


class CompilerMissing(RuntimeError):
    """No C++ compiler was found."""


def compiler() -> list[str]:
    """Return the command of the C++ compiler.

    Raises:
        CompilerMissing: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(chosen[0]) is None:
        raise CompilerMissing(MISSING.format(repr(chosen[0])))
    return chosen


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
    headers = sorted([*source.parent.glob("*.h"), *source.parent.glob("*.cpp")])  # a file may include any other
    about = [source.name, os.environ.get("CXX", ""), platform.processor(), platform.node(), *FLAGS]
    contents = "\0".join(about).encode() + b"\0".join(path.read_bytes() for path in headers)
    library = cache_folder() / f"{source.stem}-{hashlib.sha256(contents).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            output = Path(folder, library.name)
            command = [*compiler(), *FLAGS, str(source), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
            output.replace(library)  # in one step: two processes may compile at the same time
    return ctypes.CDLL(str(library))
