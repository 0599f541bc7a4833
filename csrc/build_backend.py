"""In-tree PEP 517 backend: setuptools, plus a torch to compile against where the environment has none.

The headers of any torch from 2.10 on will do (stable ABI), whatever torch runs the result. `requires = ["torch"]`
in pyproject.toml would make every isolated build download the newest CUDA build, so torch is asked for only where
none is found.

setup.py and tests/cuda/emulation use the rest: the compiler, ninja, torch, and the sources compiled several times.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# The oldest torch that may run the libraries, as torch/headeronly/version.h encodes it: 2.10.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# What the libraries are compiled for: another machine in a cross build, whose convention is this variable.
MACHINE = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2].lower()
X86 = MACHINE in ("x86_64", "amd64")
AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512".split() + AVX2
# g++ 12 mistakes its own AVX-512 intrinsics for reads of uninitialised variables (GCC bug 105593).
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# Sources that are compiled several times: for each instruction set of a CPU, and for each dtype of value on a GPU.
CPU_VARIANTS = {
    "plain": ["-DDINO_CPU_VARIANT=plain", "-DDINO_VECTOR_BYTES=16"],  # SSE2 on x86-64, NEON on Arm
    "avx2": ["-DDINO_CPU_VARIANT=avx2", "-DDINO_VECTOR_BYTES=32", *AVX2],
    "avx512": ["-DDINO_CPU_VARIANT=avx512", "-DDINO_VECTOR_BYTES=64", *AVX512],
}
VARIANTS = {
    "cpu_kernel.cpp": CPU_VARIANTS if X86 else {"plain": CPU_VARIANTS["plain"]},
    "cuda_launch.cu": {
        "float32": ["-DDINO_VALUE=float"],
        "float64": ["-DDINO_VALUE=double"],
        "bfloat16": ["-DDINO_VALUE=BFloat16"],
        "float16": ["-DDINO_VALUE=Half"],
    },
}
# Oldest GPU that runs the machine code, and its name. GPUs in between run that of the older one, and newer ones compile
# the PTX at load.
CUDA_ARCHITECTURES = {(8, 0): "8.0", (9, 0): "9.0"}
OLDEST_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"


def package_folders() -> list[Path]:
    """The site-packages that may hold torch or nvcc, the target environment's first.

    pip's isolation hides the environment's packages from `import`, but sysconfig still names their folder. uv and
    `python -m build` run the build in an environment of their own: then the user's is one on PATH, or uv's .venv.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *filter(os.path.isdir, sys.path)]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    prefixes = [Path(entry).parent for entry in os.environ.get("PATH", "").split(os.pathsep)]
    for prefix in [*prefixes, Path(".venv")]:
        if (prefix / "pyvenv.cfg").is_file() or (prefix / "conda-meta").is_dir():
            folders += sorted(prefix.glob("lib/python3*/site-packages"))
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders))


def torch_version(folder: Path) -> tuple[int, int] | None:
    """(2, 13) for a folder that contains a torch; nothing is imported."""
    version = folder / "torch" / "version.py"
    found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", version.read_text()) if version.is_file() else None
    return (int(found[1]), int(found[2])) if found else None


def torch_is_without_cuda(folder: Path) -> bool:
    """Whether a folder's torch says that it was built without CUDA; nothing is imported."""
    return re.search(r"^cuda\b.*= None$", (folder / "torch" / "version.py").read_text(), re.MULTILINE) is not None


def find_torch() -> Path | None:
    """The first torch package that is new enough and brings its C++ headers."""
    for folder in package_folders():
        version = torch_version(folder)
        if version and version >= OLDEST_TORCH and (folder / "torch/include/torch/csrc/stable").is_dir():
            return folder / "torch"
    return None


def visible_gpus() -> list[tuple[int, int]]:
    """The compute capabilities of this machine's GPUs, as the driver's own program lists them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d+)\s*$", text, re.MULTILINE)]


def default_architectures(gpus: list[tuple[int, int]]) -> str:
    """What to compile for, as TORCH_CUDA_ARCH_LIST: what some of the GPUs run, or all, and PTX of the newest."""
    used = {max((least for least in CUDA_ARCHITECTURES if least <= gpu), default=None) for gpu in gpus}
    names = [name for least, name in CUDA_ARCHITECTURES.items() if least in used] or [*CUDA_ARCHITECTURES.values()]
    return f"{' '.join(names)}+PTX"


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


def objects(source: Path) -> dict[str, list[str]]:
    """Return the object files that a source of csrc is compiled to, as suffixes of its name, and their flags."""
    variants = VARIANTS.get(source.name)
    return {".o": []} if variants is None else {f".{name}.o": flags for name, flags in variants.items()}


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
