"""Wheels: their tags, contents and libraries, and that they run without a compiler under any Python and torch.

`make wheels` builds them; `make test-wheels` installs them into new environments (gigabytes, minutes).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from dino_kernels._version import __version__
from dino_kernels.ops._core import libraries

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(libraries.__file__).parents[2]
WHEELS = sorted((ROOT / "dist").glob("*.whl"))
PYTHONS = ("3.11", "3.12", "3.13")
# The oldest and the newest torch, for the Pythons that the package index has them for.
TORCHES = os.environ.get("DINO_KERNELS_WHEEL_TORCHES", "2.10.0 2.13.0").split()
NEWEST_GLIBC = (2, 34)  # of RHEL 9; Debian 12 and Ubuntu 22.04 have newer ones
LIBRARIES = ("_C.abi3.so", "_cuda.so", "_onnx.so")
BROUGHT_BY_TORCH = {"libtorch_cpu.so", "libc10.so"}
OF_EVERY_LINUX = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="wheels are repaired by auditwheel on Linux only"),
    pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="this Python has no limited API"),
    pytest.mark.skipif(libraries.C is None, reason=f"no CPU library: {libraries.CPU_MISSING}"),
]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command; return what it prints, or fail with that."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build `make wheel-cpu`'s wheel, but from the libraries that are compiled already."""
    pytest.importorskip("auditwheel")
    tree = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "dino_kernels", "dino"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (tree / "setup.cfg").write_text("[build]\nbuild_lib = lib\n")
    run(sys.executable, "setup.py", "build_py", cwd=tree)
    for library in LIBRARIES:
        if (PACKAGE / library).is_file():
            shutil.copy(PACKAGE / library, tree / "lib/dino_kernels")
    run(sys.executable, "setup.py", "egg_info", "--tag-build=+cpu", "bdist_wheel", "--skip-build", cwd=tree)
    (raw,) = (tree / "dist").glob("*.whl")
    assert raw.name == f"dino_kernels-{__version__}+cpu-cp311-abi3-linux_x86_64.whl"
    excluded = re.findall(r"--exclude '([^']+)'", (ROOT / "Makefile").read_text())
    options = [option for name in excluded for option in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", *options, "--wheel-dir", tree / "repaired", raw, cwd=tree)
    (path,) = (tree / "repaired").glob("*.whl")
    return path


def test_a_wheel_is_tagged_for_every_python_and_an_old_glibc(wheel):
    name, tags = re.fullmatch(r"(.+)-cp311-abi3-(.+)\.whl", wheel.name).groups()  # type: ignore[union-attr]
    assert name == f"dino_kernels-{__version__}+cpu"
    versions = [tuple(map(int, found)) for found in re.findall(r"manylinux_(\d+)_(\d+)_", tags)]
    assert versions and min(versions) <= NEWEST_GLIBC
    assert "linux_x86_64" not in tags.split(".")


def test_a_wheel_has_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (message_from_bytes(archive.read(name)) for name in names if name.endswith("/METADATA"))
    top = {name.partition("/")[0] for name in names}
    assert top == {"dino", "dino_kernels", f"dino_kernels-{__version__}+cpu.dist-info"}
    libraries_in_it = {name for name in names if re.search(r"\.so(\.|$)", name)}
    assert libraries_in_it <= {f"dino_kernels/{name}" for name in LIBRARIES}, "auditwheel copied a library"
    assert {"dino_kernels/_C.abi3.so", "dino_kernels/_C.pyi", "dino_kernels/py.typed"} <= set(names)
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.10" in metadata.get_all("Requires-Dist", [])


def dynamic_section(library: Path) -> tuple[set[str], set[str], set[str]]:
    """Return the needed libraries, the versions of their symbols, and the undefined symbols of a library."""
    elffile = pytest.importorskip("elftools.elf.elffile")
    with library.open("rb") as file:
        elf = elffile.ELFFile(file)
        needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        requirements = elf.get_section_by_name(".gnu.version_r").iter_versions()
        versions = {version.name for _, auxiliaries in requirements for version in auxiliaries}
        symbols = elf.get_section_by_name(".dynsym").iter_symbols()
        return needed, versions, {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_need_only_what_torch_and_every_linux_bring(name):
    library = PACKAGE / name
    if not library.is_file():
        pytest.skip(f"{name} is not built")
    needed, versions, undefined = dynamic_section(library)
    assert needed <= BROUGHT_BY_TORCH | OF_EVERY_LINUX
    glibc = [tuple(map(int, version[6:].split("."))) for version in versions if re.fullmatch(r"GLIBC_[\d.]+", version)]
    assert max(glibc)[:2] <= NEWEST_GLIBC
    # C functions only: C++ symbols of torch or Python change with the release.
    foreign = {symbol for symbol in undefined if re.search(r"at\d?::|c10|torch", symbol) and symbol.startswith("_Z")}
    assert not foreign


def test_the_cpu_library_keeps_to_the_limited_api():
    pytest.importorskip("abi3audit")
    options = ["--report", "--assume-minimum-abi3", "3.11"]
    found = json.loads(run(sys.executable, "-m", "abi3audit", *options, PACKAGE / "_C.abi3.so", cwd=ROOT))
    (spec,) = found["specs"].values()
    assert spec["object"]["result"]["is_abi3"] and spec["object"]["result"]["non_abi3_symbols"] == []


@pytest.mark.install_matrix
@pytest.mark.parametrize("torch", TORCHES)
@pytest.mark.parametrize("python", PYTHONS)
def test_wheels_run_without_a_compiler(python, torch, tmp_path):
    assert WHEELS, "no wheels in dist/. Run make wheels first"
    interpreter = shutil.which(f"python{python}") or pytest.skip(f"python{python} is not on PATH")
    environment = Path(os.environ.get("DINO_KERNELS_WHEEL_ENVIRONMENTS") or tmp_path) / f"{python}-{torch}"
    bin = environment / "bin"
    if not bin.is_dir():
        run(interpreter, "-m", "venv", environment, cwd=tmp_path)
    # Nothing but the environment's own programs: no compiler, no nvcc, no ninja.
    alone = {"PATH": str(bin), "PYTHONPATH": "", "CUDA_HOME": "", "CXX": ""}
    run(bin / "python", "-m", "pip", "install", "--quiet", f"torch=={torch}", "numpy", cwd=tmp_path)
    for path in WHEELS:
        install = ["install", "--quiet", "--no-deps", "--force-reinstall", path]
        run(bin / "python", "-m", "pip", *install, cwd=tmp_path, **alone)
        facts = json.loads(run(bin / "python", "-m", "dino_kernels", "--json", "--check", cwd=tmp_path, **alone))
        assert facts["versions"]["torch"].startswith(torch)
        assert facts["versions"]["dino_kernels"] == __version__
        assert facts["libraries"]["cpu"] == "loaded"
        assert ("cuda runtime" in facts["libraries"]) == ("+cpu" not in path.name)
        for op, devices in facts["ops"].items():
            assert devices["cpu"]["runs"] == "cpu" and facts["check"][op]["cpu"]["cpu"] == "correct"
