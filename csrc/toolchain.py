"""What compiles csrc/: for setup.py, and for tests/cuda/emulation, which compiles the CUDA sources for a CPU."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

# The oldest torch that may run the libraries, as torch/headeronly/version.h encodes it: 2.10.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def find_compiler() -> list[str]:
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise SystemExit(
        f"dino-kernels: no C++ compiler found (looked for {chosen or 'c++, g++, clang++'}). Install one that knows "
        "C++20, such as g++ >= 11 (Debian: apt install g++, conda: gxx), or name it in CXX."
    )


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
    raise SystemExit("dino-kernels: ninja not found; pip install it, or leave out --no-build-isolation.")
