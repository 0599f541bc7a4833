"""What an installation must do: load, report, rebuild little, and come about in every usual way.

`pytest -m install_matrix` makes a virtual environment for each way to install; each takes minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from csrc import build_backend
from dino_kernels.__main__ import main
from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing.check import check_kernels

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}" if sysconfig.get_config_var("Py_GIL_DISABLED") else "_C.abi3.so"
needs_library = pytest.mark.skipif(libraries.C is None, reason=f"no CPU library: {libraries.CPU_MISSING}")


def python(*arguments: str, **environment: str) -> str:
    """What a new Python prints that imports this same package."""
    folder = Path(libraries.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
def test_build_info_names_compiler_flags_and_cuda():
    info = libraries.build_info()
    assert info is not None
    assert "-O3" in info["flags"] and "-ffast-math" not in info["flags"]
    assert info["compiler"]
    assert "plain" in info["cpu_variants"]
    assert ("nvcc" in info["cuda"]) != ("skipped" in info["cuda"])
    assert str(ROOT) not in json.dumps(info), "a build elsewhere must give the same build_info()"


@needs_library
def test_cpu_capability_is_a_compiled_variant():
    assert libraries.C is not None
    assert libraries.C.cpu_capability() in libraries.C.build_info()["cpu_variants"]


def test_report_names_every_op_and_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dino_kernels"])
    monkeypatch.setenv("COLUMNS", "80")
    main()
    text = capsys.readouterr().out
    for op in ops():
        assert f"{op} on cpu, float32: " in text
    paths = ("/", "\\")  # a long path may stand out
    too_wide = [line for line in text.splitlines() if len(line) > 80 and not any(sign in line for sign in paths)]
    assert too_wide == []


def test_report_as_json_gives_every_backend_a_reason_or_none():
    facts = json.loads(python("-m", "dino_kernels", "--json"))
    assert set(facts["ops"]) == set(ops())
    for devices in facts["ops"].values():
        assert devices["cpu"]["runs"] in devices["cpu"]["reasons"]
        assert all(reason is None or reason for reason in devices["cpu"]["reasons"].values())


def test_report_checks_every_kernel_that_runs():
    facts = json.loads(python("-m", "dino_kernels", "--json", "--check"))
    for op, devices in facts["ops"].items():
        kernels = {name for name, reason in devices["cpu"]["reasons"].items() if reason is None and name != "reference"}
        assert facts["check"][op].get("cpu", {}) == dict.fromkeys(kernels, "correct")


def test_report_names_a_wrong_result_and_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dino_kernels", "--check"])
    wrong = [("ms_deform_attn", "cpu", "AssertionError: grad_value: error 1")]
    monkeypatch.setattr("dino_kernels.__main__.check_kernels", lambda device, begins: wrong)
    assert main() == 1
    assert "supported, AssertionError: grad_value: error 1" in capsys.readouterr().out
    monkeypatch.setattr("dino_kernels.__main__.check_kernels", lambda device, begins: [])
    assert main() == 1, "an install without kernels is no correct one"


@needs_library
def test_the_check_finds_a_wrong_kernel(monkeypatch):
    backends = ops()["linear_sum_assignment"]
    right = backends.modules["cpu"].forward

    def swapped(arguments):
        columns, *others = right(arguments)
        return columns.flip(-1), *others

    monkeypatch.setattr(backends.modules["cpu"], "forward", swapped)
    found = {op: error for op, backend, error in check_kernels("cpu", print) if op == "linear_sum_assignment"}
    assert "linear_sum_assignment: columns" in (found["linear_sum_assignment"] or "")


def test_report_ends_quietly_when_its_reader_has_gone(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "argv", ["dino_kernels"])
    with os.fdopen(writer, "w") as closed_pipe:
        monkeypatch.setattr(sys, "stdout", closed_pipe)
        main()
    assert capfd.readouterr().err == ""


def test_cuda_library_loads_beside_any_torch():
    if not (Path(libraries.__file__).parent / "_cuda.so").is_file():
        pytest.skip(f"not built: {libraries.CUDA_MISSING}")
    assert libraries.CUDA is not None, libraries.CUDA_MISSING
    assert libraries.CUDA.runtime >= 12000
    assert libraries.CUDA.architectures
    if not torch.cuda.is_available():
        assert libraries.CUDA_MISSING is not None


@pytest.mark.parametrize(
    ("runtime", "driver", "reason"),
    [(13000, 0, "no NVIDIA driver"), (13000, 12080, "the driver supports CUDA 12.8"), (13000, 13010, None)],
)
def test_driver_is_compared_with_runtime(monkeypatch, runtime, driver, reason):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    why = libraries._why_unusable(libraries.CudaLibrary(runtime, driver, "800,900", True))
    assert why is None if reason is None else reason in (why or "")


def test_without_the_library_the_reference_runs_and_the_reason_is_told():
    said = python(
        "-c",
        "import sys; sys.modules['dino_kernels._C'] = None\n"
        "import torch, dino_kernels; from dino_kernels.ops._core import libraries\n"
        "out = dino_kernels.ms_deform_attn(torch.ones(1, 4, 1, 4), [(2, 2)], None,\n"
        "    torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))\n"
        "assert out.tolist() == [[[1.0] * 4]]\n"
        "print(libraries.CPU_MISSING); print(libraries.CUDA_MISSING)",
    )
    cpu, cuda = said.strip().splitlines()
    assert "pip install -e ." in cpu and "circular" not in cpu
    assert cpu in cuda


def ninja_plan(build: Path) -> set[str]:
    """What ninja would make now."""
    done = subprocess.run(["ninja", "-n", "-C", str(build)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("[")}


@pytest.mark.skipif(shutil.which("ninja") is None, reason="ninja is not installed")
@pytest.mark.parametrize("source", ["ops.cpp", "ms_deform_attn/cpu.cpp"])
def test_touching_one_source_recompiles_one_file(source):
    build = ROOT / "build" / sysconfig.get_config_var("EXT_SUFFIX").split(".")[1]
    if not (build / "build.ninja").is_file():
        pytest.skip("not built in this source tree")
    path, before = ROOT / "csrc" / source, ninja_plan(build)
    stat = path.stat()
    try:
        path.touch()
        added = ninja_plan(build) - before
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert added == {f"{source}.o", LIBRARY} - before


@pytest.mark.parametrize(
    ("gpus", "architectures"),
    [
        ([], "8.0 9.0+PTX"),
        ([(8, 6)], "8.0+PTX"),
        ([(9, 0), (9, 0)], "9.0+PTX"),
        ([(12, 0)], "9.0+PTX"),
        ([(8, 9), (9, 0)], "8.0 9.0+PTX"),
        ([(7, 5)], "8.0 9.0+PTX"),  # which the libraries do not serve: as without a GPU
    ],
)
def test_the_cuda_library_is_compiled_for_the_gpus_of_the_machine(gpus, architectures):
    assert build_backend.default_architectures(gpus) == architectures


def test_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ $1 = --query-gpu=compute_cap ] && printf '9.0\\n8.6\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_backend.visible_gpus() == [(9, 0), (8, 6)]
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert build_backend.visible_gpus() == []
    program.unlink()
    assert build_backend.visible_gpus() == []


@pytest.mark.parametrize(("cuda", "without"), [("None", True), ("'13.0'", False)])
def test_a_cpu_build_of_torch_is_recognised(tmp_path, cuda, without):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(
        f"__version__ = '2.10.0'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    )
    assert build_backend.torch_is_without_cuda(tmp_path) is without


def test_the_installed_torch_is_recognised():
    assert build_backend.torch_is_without_cuda(Path(torch.__file__).parents[1]) == (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("machine", "variants"), [("linux-aarch64", ["plain"]), ("linux-x86_64", ["plain", "avx2", "avx512"])]
)
def test_a_cross_build_has_the_instruction_sets_of_its_machine(machine, variants):
    code = "from csrc import build_backend; print(*build_backend.VARIANTS['cpu_kernel.cpp'])"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"_PYTHON_HOST_PLATFORM": machine}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == variants


# The ways to install: commands for a shell in a copy of the source tree, with the environment's programs on PATH.
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
WAYS = {
    "pip isolated": f"pip install {TORCH} && pip install -e .",
    "pip without isolation or network": (
        f"pip install {TORCH} numpy setuptools ninja && pip install --no-build-isolation --no-deps -e ."
    ),
    "uv": f"pip install {TORCH} uv && uv pip install -e .",
    "sdist and wheel": f"pip install {TORCH} build && python -m build && pip install dist/*.whl",
}


@pytest.fixture
def source_tree(tmp_path):
    """A copy without anything built."""
    ignored = shutil.ignore_patterns(
        "build", "dist", ".git", "*.so", "__pycache__", "*.egg-info", ".*_cache", "results"
    )
    return Path(shutil.copytree(ROOT, tmp_path / "source", ignore=ignored))


@pytest.mark.install_matrix
@pytest.mark.parametrize("way", WAYS)
def test_install(way, source_tree, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv/bin"
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    # The way is under test, not the code, and -O0 compiles in a quarter of the time.
    environment |= {"VIRTUAL_ENV": str(tmp_path / "venv"), "CXXFLAGS": "-O0"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(["bash", "-euc", WAYS[way]], cwd=source_tree, env=environment, check=True)
    report = subprocess.run(
        [programs / "python", "-m", "dino_kernels", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    facts = json.loads(report.stdout)
    assert all(devices["cpu"]["runs"] == "cpu" for devices in facts["ops"].values())
    assert facts["libraries"]["onnx"] == "loaded"
    built_cuda = "nvcc" in facts["build"]["cuda"]
    assert built_cuda == ("cuda runtime" in facts["libraries"])
    if way == "sdist and wheel":
        (wheel,), (sdist,) = (source_tree / "dist").glob("*.whl"), (source_tree / "dist").glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            files = {Path(name).name for name in archive.namelist()}
        assert LIBRARY in files
        assert ("_cuda.so" in files) == built_cuda
        assert "_onnx.so" in files
        with tarfile.open(sdist) as archive:
            assert any(name.endswith("csrc/ops.cpp") for name in archive.getnames())
