"""Who may import whom, what stands at the top level, and that every op has the same files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_kernels.ops._core.dispatch import ops

ROOT = Path(__file__).parents[2]
BACKENDS = ("native", "triton", "reference")
# Room: the rooms it may use, and the packages from outside, apart from torch and the standard library.
ROOMS = {
    "dino_kernels/ops/_core": ("targets _C", ""),
    "dino_kernels/ops": ("ops/_core targets", "numpy triton"),
    "dino_kernels/nn": ("ops targets", ""),
    "dino_kernels/integrations": ("* nn ops ops/_core", "transformers mmcv mmengine"),
    "dino_kernels/onnx": ("* ops", "onnx onnxscript"),
    "dino_kernels/testing": ("* ops ops/_core targets", ""),
    "dino_kernels/tutorial": ("* testing", "numpy scipy triton"),
    "dino_kernels": ("* nn ops ops/_core onnx targets testing", "numpy"),
    "dino/common": ("", "numpy tqdm"),
    "dino/model": ("", ""),
    "dino/data": ("common", "numpy PIL yaml"),
    "dino/checkpoint": ("common model data", "safetensors"),
    "dino/evaluation": ("common model data", "numpy faster_coco_eval"),
    "dino/export": ("common model data", "numpy PIL onnx onnxruntime onnxscript openvino sklearn google"),
    "dino/inference": ("common model data checkpoint evaluation export", "numpy PIL cv2 pandas supervision"),
    "dino/report": ("common data evaluation inference", "numpy PIL"),
    "dino/visualize": ("model data inference", "PIL"),
    "dino/training": ("common model data checkpoint evaluation", "safetensors matplotlib tqdm tensorboard"),
    "dino/commands": (
        "common model data checkpoint evaluation export inference report visualize training",
        "numpy PIL sklearn matplotlib tyro",
    ),
    "dino": ("commands model checkpoint inference", ""),
}
TOP_LEVEL = {
    "csrc", "dino_kernels", "dino", "benchmarks", "tests", "setup.py", "README.md", "README.zh-CN.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", "pyproject.toml", "Makefile", ".clang-format", ".pre-commit-config.yaml",
    ".gitignore", ".ci", ".github", "CITATION.cff",
}  # fmt: skip
FILES = [str(p.relative_to(ROOT)) for name in ("dino_kernels", "dino") for p in sorted((ROOT / name).rglob("*.py"))]


def room_of(path: str) -> str:
    """Return the longest room that holds a file or module, written with slashes."""
    return next(room for room in sorted(ROOMS, key=len, reverse=True) if f"{path}/".startswith(f"{room}/"))


def kind_of(stem: str) -> str:
    """Return the backend that a file of an op belongs to; "" for the op's own files."""
    kind = stem.partition("_")[0]
    return kind if kind in BACKENDS else ""


def imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names of what a file imports, also inside functions, with a slash for each dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}/{alias.name}".replace(".", "/")
                is_module = (
                    (ROOT / f"{name}.py").is_file() or (ROOT / f"{name}.pyi").is_file() or (ROOT / name).is_dir()
                )
                yield name if is_module else name.rpartition("/")[0]


def violations(file: str, tree: ast.AST) -> list[str]:
    """Return what a file must not import."""
    room = room_of(file)
    package = room.partition("/")[0]
    rooms, outside = ROOMS[room]
    allowed = {room, *(package if name == "*" else f"{package}/{name}" for name in rooms.split())}
    is_op_file = room == "dino_kernels/ops" and file.count("/") == 3
    kind = kind_of(Path(file).stem) if is_op_file else ""
    wrong = []
    for name in imported(tree):
        top = name.partition("/")[0]
        if top == "dino_kernels" and package == "dino":
            fine = room_of(name) in ("dino_kernels", "dino_kernels/nn", "dino_kernels/onnx")
        elif top in ("dino", "dino_kernels"):
            target = name if name in allowed else room_of(name)  # a room, or one file
            fine = target in allowed and (target != package or package in allowed)
            if kind and target == room:  # a backend knows its own kind in other ops, and nothing above it
                fine = kind_of(name.rpartition("/")[2]) == kind
        else:
            fine = top in sys.stdlib_module_names or top == "torch" or top in outside.split()
            if room == "dino_kernels/ops":
                fine = fine and (top != "triton" or kind == "triton") and (top != "numpy" or kind != "triton")
        if not fine:
            wrong.append(f"{file} must not import {name}")
    return wrong


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_room_may(file):
    wrong = violations(file, ast.parse((ROOT / file).read_text()))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("dino_kernels/nn/x.py", "import dino"),
        ("dino_kernels/nn/x.py", "import dino_kernels.testing"),
        ("dino_kernels/targets.py", "import dino"),
        ("dino_kernels/ops/ms_deform_attn/native.py", "from dino_kernels.ops import _attention"),
        ("dino_kernels/ops/ms_deform_attn/native.py", "from dino_kernels.ops.ms_deform_attn import reference"),
        ("dino_kernels/ops/ms_deform_attn/native.py", "import triton"),
        ("dino_kernels/ops/ms_deform_attn/__init__.py", "def late():\n    from dino_kernels import nn"),
        ("dino_kernels/ops/_core/dispatch.py", "from dino_kernels.ops import ms_deform_attn"),
        ("dino_kernels/testing/x.py", "import pytest"),
        ("dino_kernels/ops/_attention.py", "import scipy"),
        ("dino/model/criterion.py", "from scipy.optimize import linear_sum_assignment"),
        ("dino/model/encoder.py", "from dino.checkpoint import load_model"),
        ("dino/model/encoder.py", "from dino_kernels.ops.fused_ms_deform_attn import native"),
        ("dino/data/x.py", "from dino.model.config import ModelConfig"),
        ("dino/training/x.py", "import dino.commands"),
        ("dino/inference/detector.py", "import scipy"),
    ],
)
def test_the_layering_test_catches(file, source):
    assert violations(file, ast.parse(source))


def test_rooms_use_one_another_in_one_direction():
    for room, (used, _) in ROOMS.items():
        package = room.partition("/")[0]
        for name in used.split():
            back = ROOMS.get(f"{package}/{name}", ("", ""))[0].split()
            assert name == "*" or room.removeprefix(f"{package}/") not in back, f"{room} and {name} use one another"


def test_importing_the_package_imports_no_test_or_optional_package(run_python):
    imports = (
        "import sys, dino_kernels.onnx, dino_kernels.integrations.transformers, dino_kernels.integrations.original"
    )
    program = f"{imports}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    optional = {
        "triton",
        "transformers",
        "mmcv",
        "PIL",
        "matplotlib",
        "scipy",
        "pybind11",
        "dino",
        "onnx",
        "onnxscript",
        "onnxruntime",
    }
    assert not ({"pytest", "hypothesis"} | optional) & set(run_python(program).split())


def test_the_top_level_holds_only_what_a_reader_expects():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert top <= TOP_LEVEL, f"not expected at the top level: {sorted(top - TOP_LEVEL)}"


OPS = sorted(path.parent.name for path in (ROOT / "dino_kernels/ops").glob("[!_]*/__init__.py"))


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_the_same_files(name):
    files = {path.name for path in (ROOT / "dino_kernels/ops" / name).iterdir()}
    assert {"__init__.py", "README.md", *(f"{backend}.py" for backend in BACKENDS)} <= files
    assert (ROOT / f"tests/ops/test_{name}.py").exists()


def test_every_op_is_public():
    import dino_kernels

    assert sorted(ops()) == OPS
    assert set(OPS) <= set(dino_kernels.__all__)
