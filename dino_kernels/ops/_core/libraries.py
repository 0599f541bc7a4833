"""The compiled libraries, loaded at import, or the reasons why they are unavailable."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# Imported before the libraries are loaded, because they link to its shared objects.
import torch

_FOLDER = Path(__file__).parents[2]
_CUDA_PATH = _FOLDER / "_cuda.so"
_BUILD = "build it with 'pip install -e .' (-v shows the compiler's output), then run 'python -m dino_kernels'"


@dataclass(frozen=True)
class CudaLibrary:
    """The targets of dino_kernels/_cuda.so, and the newest CUDA that the machine's driver supports."""

    runtime: int  # 13000 is CUDA 13.0
    driver: int  # likewise; 0 without a driver
    architectures: str  # "800,900"
    current_stream: bool  # whether torch's current stream, which every launch needs, was found


def _load_cpu() -> tuple[ModuleType | None, str | None]:
    if find_spec("dino_kernels._C") is None:
        others = ", ".join(sorted(path.name for path in _FOLDER.glob("_C.*.so")))
        found = f"only {others}, for another Python," if others else "no compiled library"
        return None, f"found {found} in {_FOLDER}; {_BUILD}"
    try:
        from dino_kernels import _C
    except ImportError as error:  # a torch older than 2.10, another machine, or a damaged file
        return None, f"dino_kernels._C did not load under torch {torch.__version__} ({error}); {_BUILD}"
    return _C, None


def _load_cuda(cpu: ModuleType | None) -> tuple[CudaLibrary | None, str | None]:
    path = _CUDA_PATH
    if cpu is None:
        return None, f"the CUDA kernels need dino_kernels._C, which declares their ops: {CPU_MISSING}"
    if not path.is_file():
        skipped = cpu.build_info()["cuda"].get("skipped", f"{path} is missing")
        return None, f"the CUDA kernels were not built: {skipped}; {_BUILD}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path.name} did not load ({error}); {_BUILD}"
    library.dino_kernels_cuda_architectures.restype = ctypes.c_char_p
    info = CudaLibrary(
        library.dino_kernels_cuda_runtime_version(),
        library.dino_kernels_cuda_driver_version(),
        library.dino_kernels_cuda_architectures().decode(),
        bool(library.dino_kernels_cuda_has_current_stream()),
    )
    return info, _why_unusable(info)


def _why_unusable(cuda: CudaLibrary) -> str | None:
    """Return why no GPU of this machine can run the library, or None."""
    if cuda.driver == 0:
        return "no NVIDIA driver on this machine"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    # Within a major version, every driver runs machine code of every runtime.
    if cuda.driver // 1000 < cuda.runtime // 1000:
        return (
            f"the driver supports CUDA {version_text(cuda.driver)}, the kernels were compiled with "
            f"{version_text(cuda.runtime)}: update the driver, or build with an older nvcc (set CUDA_HOME)"
        )
    if not cuda.current_stream:
        return (
            f"torch {torch.__version__} has loaded no libtorch_cuda.so with aoti_torch_get_current_cuda_stream, which "
            "gives a kernel its stream: install a CUDA build of torch 2.10 or newer"
        )
    return None


@contextmanager
def assume_multiprocessors(count: int) -> Iterator[None]:
    """Choose CUDA kernels as for a GPU with `count` multiprocessors, in all threads: for tests and sanitizers.

    With 1, small inputs use the kernels of large calls; with a large number, every call uses those of small calls.

    Raises:
        RuntimeError: there is no CUDA library.
    """
    with _setting("dino_kernels_cuda_assume_multiprocessors", count):
        yield


@contextmanager
def _setting(function: str, number: int) -> Iterator[None]:
    """Set a number in the CUDA library that is otherwise 0."""
    if CUDA is None:
        raise RuntimeError(f"{function} needs the CUDA library: {CUDA_MISSING}")
    set_number = getattr(ctypes.CDLL(str(_CUDA_PATH)), function)  # returns the library that is already loaded
    set_number(number)
    try:
        yield
    finally:
        set_number(0)


# By device index. Neither the GPUs nor the library change during a process.
_unsupported_gpus: dict[int, str | None] = {}


def unsupported_gpu(index: int) -> str | None:
    """Return why the machine code and PTX in the CUDA library do not run on this GPU, or None."""
    if index not in _unsupported_gpus:
        _unsupported_gpus[index] = _why_unsupported(index)
    return _unsupported_gpus[index]


def _why_unsupported(index: int) -> str | None:
    assert CUDA is not None
    major, minor = torch.cuda.get_device_capability(index)
    compiled = [(int(number) // 100, int(number) // 10 % 10) for number in CUDA.architectures.split(",")]
    if any(major == other and minor >= least for other, least in compiled):
        return None
    # The driver compiles PTX of older architectures at load time.
    flags = " ".join((build_info() or {}).get("cuda", {}).get("flags", []))
    ptx = [(int(number[:-1]), int(number[-1])) for number in re.findall(r",compute_(\d+)\]", flags)]
    if any((major, minor) >= least for least in ptx):
        return None
    names = ", ".join(f"sm_{other}{least}" for other, least in compiled)
    return (
        f"the kernels were compiled for {names}, and this GPU is sm_{major}{minor}: build again with "
        f'TORCH_CUDA_ARCH_LIST="{major}.{minor}"'
    )


# The effect of `torch.compiler.assume_constant_result`, which would import the whole compiler and Triton.
unsupported_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def version_text(version: int) -> str:
    """Return 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def build_info() -> dict[str, Any] | None:
    """Return how `_C` was built, or None without it."""
    return C.build_info() if C else None


# The libraries, or None, and why their kernels cannot run, or None.
C, CPU_MISSING = _load_cpu()
CUDA, CUDA_MISSING = _load_cuda(C)
