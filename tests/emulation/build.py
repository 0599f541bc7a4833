"""Compiles csrc/**/*.cu with a C++ compiler, for the CPU: `python tests/emulation/build.py [--sanitize]`.

Prints the library's path. Nothing is compiled again that did not change.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# cuda_info.cu describes the real CUDA library and has no kernels.
KERNELS = sorted(path for path in (ROOT / "csrc").rglob("*.cu") if path.name != "cuda_info.cu")
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
# -O1: unoptimised, the kernels would be too slow to be worth it.
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
SANITIZED += ["-fsanitize=address,undefined,float-cast-overflow"]


def ninja_program() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
    raise RuntimeError("the emulation is compiled with ninja: pip install ninja")


def build(sanitize: bool = False) -> Path:
    """The path of the compiled library.

    Raises:
        RuntimeError: the sources do not compile; the message has what the compiler said.
    """
    folder = ROOT / "build" / ("emulation-sanitized" if sanitize else "emulation")
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    torch_folder = Path(torch.__file__).parent
    mode = SANITIZED if sanitize else OPTIMISED
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", str(torch_folder / "include")]
    flags = [*FLAGS, *mode, "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes]
    torch_library = folder / "torch"  # a name that stays, for linking
    torch_library.unlink(missing_ok=True)
    torch_library.symlink_to(torch_folder / "lib")
    command = shlex.join([*compiler, *flags]).replace("$", "$$")
    link = shlex.join([*compiler, *mode]).replace("$", "$$")
    lines = [
        "ninja_required_version = 1.5",
        f"rule compile\n  command = {command} -MMD -MF $out.d -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {link} -shared $in -Ltorch -ltorch_cpu -lc10 -o $out",
    ]
    objects = []
    for source in [*KERNELS, HERE / "emulation.cpp", HERE / "ops.cpp"]:
        objects.append(f"{source.stem}.o")
        lines.append(f"build {objects[-1]}: compile {source}")
    lines.append(f"build emulated.so: link {' '.join(objects)}")
    text = "\n".join(lines) + "\n"
    plan = folder / "build.ninja"
    if not plan.is_file() or plan.read_text() != text:
        plan.write_text(text)
    finished = subprocess.run([ninja_program(), "-C", str(folder)], capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"csrc/**/*.cu did not compile under tests/emulation:\n{finished.stdout}{finished.stderr}")
    return folder / "emulated.so"


if __name__ == "__main__":
    print(build(sanitize="--sanitize" in sys.argv[1:]))
