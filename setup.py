"""Compiles csrc/ with ninja, into a build folder that persists so that touching one file recompiles one file.

    dino_kernels/_C.abi3.so   CPU kernels and build_info(), always
    dino_kernels/_cuda.so     every csrc/**/*.cu, where nvcc is found; else build_info() says why not
    dino_kernels/_onnx.so     custom ops for ONNX Runtime: csrc/onnx/ and CPU kernels of the first; if it fails to
                              compile, the others install without it

The first two use LibTorch's stable ABI only: they run under any torch from 2.10 on, whichever they were compiled
against, and the CUDA library also loads beside a CPU torch. `_C` uses Python's limited API, so one file serves every
Python from 3.11 on; only free-threaded Pythons, which have no limited API, get one of their own. The third uses neither
torch nor Python. Everything is looked for inside build_ext, because this file also runs when a build front end merely
asks for requirements.

Environment: CXX, CXXFLAGS, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, DINO_KERNELS_SANITIZE=address, and
DINO_KERNELS_CUDA: 0 leaves the CUDA library out, 1 fails where it cannot be built. Without the last and without
TORCH_CUDA_ARCH_LIST, a CPU build of torch gets no CUDA library, and others get one for the GPUs of this machine, or for
all where none is seen.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
sys.path.insert(0, str(CSRC))
from build_backend import (
    MACHINE,
    TORCH_REQUIREMENT,
    TORCH_TARGET,
    VARIANTS,
    X86,
    default_architectures,
    find_compiler,
    find_ninja,
    find_torch,
    objects,
    package_folders,
    torch_is_without_cuda,
    torch_version,
    visible_gpus,
)

CPU_LIBRARY, CUDA_LIBRARY, ONNX_LIBRARY = "dino_kernels._C", "dino_kernels._cuda", "dino_kernels._onnx"
# What ONNX Runtime's custom ops share with the CPU library; these files do not use torch.
SHARED_WITH_ONNX = ["common/cpu_capability.cpp", "ms_deform_attn/cpu_choice.cpp", "ms_deform_attn/cpu_kernel.cpp"]
SANITIZE = os.environ.get("DINO_KERNELS_SANITIZE", "")
CUDA = os.environ.get("DINO_KERNELS_CUDA", "")

# The oldest Python of pyproject.toml, as Py_LIMITED_API encodes it and as wheels are tagged.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
PYTHON_DEFINES, WHEEL_TAG = ["-DPy_LIMITED_API=0x030b0000"] if LIMITED_API else [], "cp311"
CPU_SUFFIX = ".abi3.so" if LIMITED_API else sysconfig.get_config_var("EXT_SUFFIX")

DEFINES = [TORCH_TARGET, *(["-DDINO_KERNELS_X86=1"] if X86 else [])]
# Written for Linux on x86-64, and tried on aarch64 (`make arm`); macOS gets what its compiler documents, untested.
# Not -ffast-math: the kernels must tell NaN and infinity from numbers.
CXX_FLAGS = "-O3 -std=c++20 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast".split()
WARNINGS = ["-Wall", "-Wextra"]
# The vptr check compares type information across library borders, where it may have copies.
# -O0: with checks around every intrinsic, any optimisation takes minutes a file.
ADDRESS = "-O0 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all".split()
ADDRESS += ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr"]
SANITIZERS = {"": [], "address": ADDRESS}
NVCC_FLAGS = "-O3 -std=c++20 --expt-relaxed-constexpr -cudart=static -Xcompiler=-fPIC,-fvisibility=hidden".split()


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler that was seen to work."""

    path: Path
    version: str
    flags: list[str]
    libraries: list[str]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def torch_folder() -> Path:
    if found := find_torch():
        return found
    seen = [f"{version[0]}.{version[1]} in {x}" for x in package_folders() if (version := torch_version(x))]
    raise SystemExit(
        f"dino-kernels: the C++ headers of {TORCH_REQUIREMENT} were not found (seen: {', '.join(seen) or 'no torch'}). "
        f'Run pip install "{TORCH_REQUIREMENT}" first; any build of it will do, CPU or CUDA.'
    )


def architecture_flags() -> list[str]:
    """TORCH_CUDA_ARCH_LIST in torch's notation, "8.0;9.0a+PTX", as nvcc's flags."""
    flags = []
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen is None:
        # A wheel is for other machines, too.
        chosen = default_architectures([] if CUDA == "1" else visible_gpus())
    for name in chosen.replace(";", " ").split():
        parts = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if parts is None:
            raise SystemExit(f'dino-kernels: TORCH_CUDA_ARCH_LIST has {name!r}; write it as "8.0;9.0+PTX".')
        number = parts[1] + parts[2]
        code = f"[sm_{number},compute_{number}]" if parts[3] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def nvcc_candidates() -> list[Path]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    programs = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    paths = [Path(home) / "bin/nvcc" for home in homes if home] + [Path(program) for program in programs if program]
    for folder in package_folders():  # the nvidia-cuda-nvcc packages of CUDA 13 and of CUDA 12
        paths += [*sorted(folder.glob("nvidia/cu[0-9]*/bin/nvcc")), folder / "nvidia/cuda_nvcc/bin/nvcc"]
    return [path for path in paths if os.access(path, os.X_OK)]


def find_nvcc(compiler: list[str], torch: Path) -> Nvcc | str:
    """The first CUDA compiler that works, or why the CUDA library is left out."""
    if CUDA not in ("", "0", "1"):
        raise SystemExit(f"dino-kernels: DINO_KERNELS_CUDA must be 0, 1 or unset, got {CUDA!r}")
    if CUDA == "0":
        return "left out by DINO_KERNELS_CUDA=0"
    if SANITIZE:
        return f"not part of a build with DINO_KERNELS_SANITIZE={SANITIZE}"
    if not CUDA and "TORCH_CUDA_ARCH_LIST" not in os.environ and torch_is_without_cuda(torch.parent):
        return "the installed torch was built without CUDA; DINO_KERNELS_CUDA=1 compiles the CUDA library all the same"
    tried = [probe_nvcc(path, compiler) for path in nvcc_candidates()]
    missing = "nvcc was not found (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, nvidia-cuda-nvcc packages)"
    chosen = next((found for found in tried if isinstance(found, Nvcc)), tried[0] if tried else missing)
    if CUDA == "1" and isinstance(chosen, str):
        raise SystemExit(
            f"dino-kernels: DINO_KERNELS_CUDA=1, but {chosen}. Name a CUDA toolkit in CUDA_HOME, or unset the variable."
        )
    return chosen


def probe_nvcc(path: Path, compiler: list[str]) -> Nvcc | str:
    """A toolkit that cannot compile an empty program is broken, and counts as none: the CPU library still installs.

    Reasons are a host compiler it does not know, or a missing package. Once the empty program has compiled, an error
    in our own sources fails the build.
    """
    release = re.search(r"release [\d.]+, V([\d.]+)", run([str(path), "--version"]).stdout)
    home = path.resolve().parent.parent
    libraries = [f"-L{folder}" for name in ("lib64", "lib") if (folder := home / name).is_dir()]
    flags = [*NVCC_FLAGS, *(["-ccbin", *compiler] if len(compiler) == 1 else []), *architecture_flags()]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cu")
        source.write_text("#include <cuda_runtime.h>\n#include <vector>\n__global__ void nothing() {}\n")
        probe = run([str(path), *flags, *libraries, "-shared", str(source), "-o", str(source.with_suffix(".so"))])
    if probe.returncode != 0 or release is None:
        said = [line.strip() for line in (probe.stderr + probe.stdout).splitlines() if re.search("error|fatal", line)]
        return f"{path} cannot compile an empty program: {(said or ['no message'])[0]}"
    return Nvcc(path, release[1], flags, libraries)


def build_info(compiler: list[str], torch: Path, flags: list[str], nvcc: Nvcc | str) -> dict[str, object]:
    """What `dino_kernels._C.build_info()` returns: nothing that differs between two equal builds."""
    version = torch_version(torch.parent)
    return {
        "compiler": run([*compiler, "--version"]).stdout.partition("\n")[0],
        "flags": flags,
        "cpu_variants": [*VARIANTS["cpu_kernel.cpp"]],
        "torch_headers": ".".join(map(str, version or ())),
        "runs_with_torch": TORCH_REQUIREMENT.removeprefix("torch"),
        "sanitize": SANITIZE or None,
        "cuda": {"skipped": nvcc} if isinstance(nvcc, str) else {"nvcc": nvcc.version, "flags": nvcc.flags},
    }


class NinjaFile:
    """The text of a build.ninja."""

    def __init__(self) -> None:
        self.text = "ninja_required_version = 1.5\n"

    def rule(self, name: str, command: list[str], depfile: bool = False) -> None:
        """`command` may contain $in, $out and $flags, which ninja fills in (and quotes) for each edge."""
        line = " ".join(part if part.startswith("$") else shlex.quote(part).replace("$", "$$") for part in command)
        self.text += f"rule {name}\n  command = {line}\n  description = {name} $out\n"
        if depfile:
            self.text += "  depfile = $out.d\n  deps = gcc\n"

    def edge(self, output: str, rule: str, inputs: list[str], flags: list[str] | None = None) -> str:
        escaped = [re.sub(r"([$ :])", r"$\1", name) for name in [output, *inputs]]
        self.text += f"build {escaped[0]}: {rule} {' '.join(escaped[1:])}\n  flags = {shlex.join(flags or [])}\n"
        return output


def unused(flags: list[str]) -> bool:
    """Whether a sanitized library has these kernels for its loader alone: this machine cannot run them."""
    processor = Path("/proc/cpuinfo")
    return bool(SANITIZE) and "-mavx512f" in flags and processor.is_file() and " avx512f" not in processor.read_text()


def link_to(target: Path, link: Path) -> Path:
    """A path that stays the same although each isolated build has its headers in a new folder.

    ninja recompiles what has a new command line, so without this every `pip install -e .` would compile everything.
    """
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def plan(build: Path, compiler: list[str], flags: list[str], nvcc: Nvcc | str) -> tuple[str, dict[str, str]]:
    """The text of build.ninja, and the files that it makes by extension name."""
    ninja = NinjaFile()
    python = sysconfig.get_path("include")
    torch_includes = ["-isystem", str(build / "torch/include")]
    includes = [f"-I{CSRC}", f"-I{build}", *torch_includes, "-isystem", python]
    output = ["-MMD", "-MF", "$out.d", "$flags", "-c", "$in", "-o", "$out"]
    torch_libraries = ["-shared", f"-L{build / 'torch/lib'}", "-ltorch_cpu", "-lc10"]
    # Python's own symbols are the interpreter's; only macOS wants to be told.
    python_symbols = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []

    def outputs(path: Path) -> list[str]:
        return [f"{path.relative_to(CSRC)}{suffix}" for suffix in objects(path)]

    def compile_all(rule: str, sources: list[Path]) -> list[str]:
        return [
            ninja.edge(name, rule, [str(path)], [*flags, "-fno-sanitize=all"] if unused(flags) else flags)
            for path in sorted(sources)
            for name, flags in zip(outputs(path), objects(path).values(), strict=True)
        ]

    ninja.rule("compile", [*compiler, *flags, f"-ffile-prefix-map={ROOT}=.", *includes, *output], depfile=True)
    ninja.rule("link", [*compiler, *SANITIZERS[SANITIZE], "$in", *torch_libraries, *python_symbols, "-o", "$out"])
    ninja.rule("link_alone", [*compiler, *SANITIZERS[SANITIZE], "-shared", "$in", "-o", "$out"])
    onnx = {*CSRC.glob("onnx/*.cpp")}
    sources = sorted({*CSRC.rglob("*.cpp")} - {*CSRC.glob("hub/**/*.cpp")} - onnx)
    libraries = {CPU_LIBRARY: ninja.edge(f"_C{CPU_SUFFIX}", "link", compile_all("compile", sources))}
    shared = [name for path in SHARED_WITH_ONNX for name in outputs(CSRC / path)]
    libraries[ONNX_LIBRARY] = ninja.edge("_onnx.so", "link_alone", compile_all("compile", [*onnx]) + shared)
    if isinstance(nvcc, Nvcc):
        command = [str(nvcc.path), *nvcc.flags]
        ninja.rule("nvcc", [*command, *DEFINES, f"-I{CSRC}", *torch_includes, *output], depfile=True)
        ninja.rule("nvcc_link", [*command, "$in", *torch_libraries, *nvcc.libraries, "-o", "$out"])
        kernels = compile_all("nvcc", [*CSRC.rglob("*.cu")])
        libraries[CUDA_LIBRARY] = ninja.edge("_cuda.so", "nvcc_link", kernels)
    return ninja.text, libraries


def compile_libraries(build: Path) -> dict[str, Path]:
    if SANITIZE not in SANITIZERS:
        raise SystemExit(f"dino-kernels: DINO_KERNELS_SANITIZE must be 'address' or unset, got {SANITIZE!r}")
    compiler, ninja, torch = find_compiler(), find_ninja(), torch_folder()
    nvcc = find_nvcc(compiler, torch)
    flags = [*CXX_FLAGS, *WARNINGS, *DEFINES, *PYTHON_DEFINES, *SANITIZERS[SANITIZE]]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    build.mkdir(parents=True, exist_ok=True)
    link_to(torch, build / "torch")
    info = json.dumps(build_info(compiler, torch, flags, nvcc), indent=1)
    write_if_changed(build / "build_info.h", f'inline constexpr char BUILD_INFO_JSON[] = R"json({info})json";\n')
    text, libraries = plan(build, compiler, flags, nvcc)
    write_if_changed(build / "build.ninja", text)

    command = [ninja, "-C", str(build)]
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    needed = [file for name, file in libraries.items() if name != ONNX_LIBRARY]
    if subprocess.run([*command, *jobs, *needed], check=False).returncode != 0:
        raise SystemExit("dino-kernels: compiling csrc/ failed; the compiler's message is above (pip shows it with -v)")
    if subprocess.run([*command, *jobs, libraries[ONNX_LIBRARY]], check=False).returncode != 0:
        print("dino-kernels: compiling csrc/onnx/ failed; continuing without the custom ops for ONNX Runtime")
        del libraries[ONNX_LIBRARY]
    (build / "compile_commands.json").write_text(run([*command, "-t", "compdb"]).stdout)
    return {name: build / file for name, file in libraries.items()}


def remove_libraries(folder: Path) -> None:
    """Remove an earlier build's libraries: a `_C` for one Python is imported before `_C.abi3.so`, and the others would
    not be those that this build_info() speaks of."""
    for library in [*folder.glob("_C.*.so"), folder / "_cuda.so", folder / "_onnx.so"]:
        library.unlink(missing_ok=True)


class NinjaBuild(build_ext):
    """build_ext that compiles nothing itself: it runs ninja and takes the libraries."""

    def build_extensions(self) -> None:
        tag = sysconfig.get_config_var("EXT_SUFFIX").split(".")[1] + (f"-{SANITIZE}" if SANITIZE else "")
        tag += "" if platform.machine().lower() == MACHINE else f"-for-{MACHINE}"
        libraries = compile_libraries(ROOT / "build" / tag)
        remove_libraries(Path(self.get_ext_fullpath(CPU_LIBRARY)).parent)
        for name, library in libraries.items():
            target = Path(self.get_ext_fullpath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(library), str(target))
        self.extensions = [extension for extension in self.extensions if extension.name in libraries]

    def copy_extensions_to_source(self) -> None:
        remove_libraries(ROOT / "dino_kernels")
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        # These are no Python modules: loaded by path, they fit every Python.
        if fullname.rpartition(".")[2] in ("_cuda", "_onnx"):
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)


class FullSdist(sdist):
    """A source distribution that can be built, tested and measured."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        folders = [path for name in ("csrc", "tests", "benchmarks") for path in (ROOT / name).rglob("*")]
        skipped = {"__pycache__", "latest"}
        more = [path.relative_to(ROOT) for path in folders if path.is_file() and not skipped & {*path.parts}]
        super().make_release_tree(base_dir, sorted({*files, "Makefile", *map(str, more)}))


setup(
    ext_modules=[
        Extension(CPU_LIBRARY, sources=[], py_limited_api=LIMITED_API),
        *(Extension(name, sources=[]) for name in (CUDA_LIBRARY, ONNX_LIBRARY)),
    ],
    cmdclass={"build_ext": NinjaBuild, "sdist": FullSdist},
    options={"bdist_wheel": {"py_limited_api": WHEEL_TAG}} if LIMITED_API else {},
)
