"""Compile csrc/**/*.cu with a C++ compiler, for the CPU: `python tests/cuda/emulation/build.py [--sanitize]`.

Prints the library's path. Only changed sources are compiled again.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import TORCH_TARGET, find_compiler, find_ninja, objects

# cuda_info.cu describes the real CUDA library and has no kernels.
KERNELS = sorted(path for path in (ROOT / "csrc").rglob("*.cu") if path.name != "cuda_info.cu")
EMULATION = [HERE / "emulation.cpp", HERE / "tensor_cores.cpp"]
LIBRARIES = {
    "emulated": [*KERNELS, *EMULATION, HERE / "ops.cpp"],
    "test_kernels": [HERE / "test_kernels.cu", *EMULATION],
}
FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
OPTIMISED = ["-O2"]
# -O1: unoptimised kernels are too slow.
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
SANITIZED += ["-fsanitize=address,undefined,float-cast-overflow"]


def sanitizer_runtime() -> str | None:
    """Return what LD_PRELOAD needs for a Python that is not sanitized; libstdc++ too, for exceptions."""
    paths = []
    for library in ("libasan.so", "libstdc++.so"):
        command = [*find_compiler(), f"-print-file-name={library}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return " ".join(paths) if all(Path(path).is_absolute() for path in paths) else None


def plan(sanitize: bool) -> str:
    """Return the text of build.ninja."""
    mode = SANITIZED if sanitize else OPTIMISED
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", str(torch_folder / "include")]
    flags = [*FLAGS, *mode, TORCH_TARGET, *includes]
    command = shlex.join([*find_compiler(), *flags]).replace("$", "$$")
    link = shlex.join([*find_compiler(), *mode]).replace("$", "$$")
    lines = [
        "ninja_required_version = 1.5",
        f"rule compile\n  command = {command} -MMD -MF $out.d -x c++ $flags -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {link} -shared $in $libraries -o $out",
    ]
    sources = dict.fromkeys(source for sources in LIBRARIES.values() for source in sources)
    compiled = {source: [f"{source.relative_to(ROOT)}{suffix}" for suffix in objects(source)] for source in sources}
    for source in sources:
        for output, flags in zip(compiled[source], objects(source).values(), strict=True):
            lines.append(f"build {output}: compile {source}\n  flags = {shlex.join(flags)}")
    for library, parts in LIBRARIES.items():
        lines.append(f"build {library}.so: link {' '.join(output for part in parts for output in compiled[part])}")
        lines += ["  libraries = -Ltorch -ltorch_cpu -lc10"] if library == "emulated" else []
    return "\n".join(lines) + "\n"


def build(library: str = "emulated", sanitize: bool = False) -> Path:
    """Return the path of the compiled library: "emulated" or "test_kernels".

    Raises:
        RuntimeError: the sources do not compile; the message has the compiler's output.
    """
    folder = ROOT / "build" / ("emulation-sanitized" if sanitize else "emulation")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of pytest-xdist or make build at the same time
        torch_library = folder / "torch"  # a name that stays, for linking
        torch_library.unlink(missing_ok=True)
        torch_library.symlink_to(Path(torch.__file__).parent / "lib")
        file, text = folder / "build.ninja", plan(sanitize)
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)
        command = [find_ninja(), "-C", str(folder), f"{library}.so"]
        # A sanitizer that is loaded into this process is not for the compiler.
        environment = {name: setting for name, setting in os.environ.items() if name != "LD_PRELOAD"}
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode != 0:
        raise RuntimeError(f"{library} did not compile under tests/cuda/emulation:\n{finished.stdout}{finished.stderr}")
    return folder / f"{library}.so"


if __name__ == "__main__":
    print(build(sanitize="--sanitize" in sys.argv[1:]))
