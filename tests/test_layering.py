"""Who may import whom, what stands at the top level, and that every op has the same files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = ("cpu", "cuda", "triton")

KERNELS = ("dino_kernels.functional", "dino_kernels.nn", "dino_kernels.targets", "dino_kernels.matches")
PARTS = (
    *(
        "config",
        "boxes",
        "position",
        "layers",
        "outputs",
        "backbone",
        "backbone_resnet",
        "backbone_swin",
        "backbone_convnext",
    ),
    *("neck", "encoder", "query_selection", "decoder", "look_forward", "denoising", "initialize"),
    *("targets", "matching", "criterion", "postprocessing"),
)
MODEL_PARTS = tuple(f"dino.{part}" for part in PARTS)
# First pattern that matches a module wins: what of this repository, and what from outside, it may import.
RULES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    # A backend, of one file or several, knows its own kind in other ops, and nothing above it.
    *(
        (
            f"dino_kernels.ops.*.{name}*",
            (
                *(f"dino_kernels.{shared}", "dino_kernels._layout", "dino_kernels._fixed_point"),
                *("dino_kernels.ops.*.native", f"dino_kernels.ops.*.{name}*"),
            ),
            ("torch", *outside),
        )
        for name, shared, outside in (
            ("cpu", "_native", ()),
            ("cuda", "_native", ()),
            ("triton", "_triton", ("triton",)),
        )
    ),
    ("dino_kernels.ops.*.native", ("dino_kernels._layout", "dino_kernels.ops.*.native"), ("torch",)),
    ("dino_kernels.ops.*.reference", ("dino_kernels.ops.*.reference",), ("torch", "numpy")),
    (
        "dino_kernels.ops.*",
        ("dino_kernels._arguments", "dino_kernels._matching", "dino_kernels._dispatch", "dino_kernels._library")
        + ("dino_kernels._eager",)
        + tuple(f"dino_kernels.ops.*.{name}" for name in (*BACKENDS, "reference")),
        ("torch",),
    ),
    ("dino_kernels.ops", (), ()),
    ("dino_kernels._native", ("dino_kernels._C",), ("torch",)),
    ("dino_kernels._*_", ("dino_kernels", "dino_kernels.*"), ("torch",)),  # __main__
    ("dino_kernels._accuracy", ("dino_kernels.functional",), ("torch",)),
    ("dino_kernels._matching", ("dino_kernels.targets",), ("torch",)),
    ("dino_kernels._matching_cases", ("dino_kernels.targets",), ("torch",)),
    (
        "dino_kernels._matching_accuracy",
        ("dino_kernels._accuracy", "dino_kernels._matching", "dino_kernels.ops.*"),
        ("torch",),
    ),
    ("dino_kernels._*", (), ("torch",)),
    ("dino_kernels.targets", (), ("torch",)),
    ("dino_kernels.functional", ("dino_kernels.ops.*",), ()),
    (
        "dino_kernels.matches",
        ("dino_kernels._matching", "dino_kernels.targets", "dino_kernels.ops.hungarian_match"),
        ("torch", "numpy"),
    ),
    (
        "dino_kernels.hungarian_matcher",
        ("dino_kernels._mask_cost", "dino_kernels._matching", "dino_kernels.functional", "dino_kernels.matches")
        + ("dino_kernels.targets", "dino_kernels.ops.hungarian_match"),
        ("torch",),
    ),
    ("dino_kernels.nn", ("dino_kernels.functional", "dino_kernels.hungarian_matcher"), ("torch",)),
    (
        "dino_kernels.testing",
        ("dino_kernels._accuracy", "dino_kernels._matching_accuracy", "dino_kernels._matching_cases"),
        ("torch",),
    ),
    (
        "dino_kernels.integrations*",
        ("dino_kernels", "dino_kernels.functional", "dino_kernels.nn", "dino_kernels.integrations*")
        # The original's functions include the backward by itself, which is an op and not a public function.
        + ("dino_kernels._arguments", "dino_kernels.ops.ms_deform_attn", "dino_kernels.ops.fused_ms_deform_attn"),
        ("torch", "transformers", "mmcv", "mmengine"),
    ),
    (
        "dino_kernels",
        ("dino_kernels.nn", "dino_kernels.functional", "dino_kernels._dispatch", "dino_kernels._version")
        # The types of arguments and results.
        + ("dino_kernels.targets", "dino_kernels.matches", "dino_kernels.ops.*"),
        (),
    ),
    # The model's parts know each other and the kernels; the model knows its parts; all else may use the model.
    *((f"dino.{part}", MODEL_PARTS + KERNELS, ("torch",)) for part in PARTS),
    ("dino.model", (*MODEL_PARTS, "dino.backbone_weights"), ("torch",)),
    ("dino.data*", ("dino.data", "dino.data.*"), ("torch", "numpy", "PIL", "sklearn")),
    ("dino.training*", ("dino.[!_]*",), ("torch", "numpy", "safetensors", "matplotlib", "tqdm", "tyro", "tensorboard")),
    ("dino.__main__", ("dino.cli",), ()),
    (
        "dino*",
        ("dino.[!_]*", *KERNELS),
        ("torch", "numpy", "PIL", "safetensors", "faster_coco_eval", "tqdm", "tyro", "matplotlib"),
    ),
]
TOP_LEVEL = {
    "csrc", "dino_kernels", "dino", "benchmarks", "tests", "setup.py", "README.md", "README.zh-CN.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", "pyproject.toml", "Makefile", ".clang-format", ".pre-commit-config.yaml",
    ".gitignore", ".ci",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in ("dino_kernels", "dino") for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of what a file imports, also inside functions."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")
                source = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                native = inner in ("dino_kernels._C", "dino_kernels._cuda")
                yield inner if inner in MODULES or native else source


def rule_of(module: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for pattern, inside, outside in RULES:
        if fnmatch(module, pattern):
            return inside, outside
    raise AssertionError(f"{module}: no layering rule; add one to {Path(__file__).name}")


def violations(module: str, tree: ast.AST) -> list[str]:
    inside, outside = rule_of(module)
    wrong = []
    for name in imported(module, tree):
        root = name.partition(".")[0]
        if root in ("dino_kernels", "dino"):
            allowed = any(fnmatch(name, pattern) for pattern in inside)
        else:
            allowed = root in sys.stdlib_module_names or any(fnmatch(root, pattern) for pattern in outside)
        if not allowed:
            wrong.append(
                f"{module} must not import {name}; it may import {', '.join((*inside, *outside)) or 'nothing'}"
            )
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module):
    wrong = violations(module, ast.parse(MODULES[module].read_text()))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dino_kernels.nn", "from dino_kernels.ops.ms_deform_attn import cpu"),
        ("dino_kernels.nn", "import dino"),
        ("dino_kernels.targets", "from dino_kernels import _matching"),
        ("dino.matching", "from scipy.optimize import linear_sum_assignment"),
        ("dino_kernels.functional", "from dino_kernels import nn"),
        ("dino_kernels.ops.ms_deform_attn.cpu", "from dino_kernels import _dispatch"),
        ("dino_kernels.ops.ms_deform_attn.cpu", "from ...ops.ms_deform_attn import reference"),
        ("dino_kernels.ops.ms_deform_attn.cpu", "import triton"),
        ("dino_kernels.ops.ms_deform_attn", "def late():\n    from dino_kernels import functional"),
        ("dino_kernels._dispatch", "from dino_kernels.ops import ms_deform_attn"),
        ("dino_kernels.testing", "import pytest"),
        ("dino_kernels._arguments", "import numpy"),
        ("dino_kernels", "import dino_kernels.testing"),
        ("dino.encoder", "from dino.model import DINO"),
        ("dino.encoder", "from dino_kernels.ops.fused_ms_deform_attn import cpu"),
        ("dino.model", "from dino.train import train"),
        ("dino.data.coco", "from dino.config import ModelConfig"),
        ("dino.detector", "import pandas"),
    ],
)
def test_the_layering_test_catches(module, source):
    assert violations(module, ast.parse(source))


def test_importing_the_package_imports_no_test_or_optional_package(run_python):
    program = "import sys, dino_kernels; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    unwanted = {"pytest", "hypothesis", "triton", "transformers", "mmcv", "PIL", "matplotlib", "dino"}
    assert not unwanted & set(run_python(program).split())


def test_the_top_level_holds_only_what_a_reader_expects():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert top <= TOP_LEVEL, f"not expected at the top level: {sorted(top - TOP_LEVEL)}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("dino.")])
def test_a_module_of_the_detector_can_be_read_at_one_go(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 250, f"{module} has {lines} lines: which two ideas live there?"


OPS = sorted(path.parent.name for path in (ROOT / "dino_kernels" / "ops").glob("*/__init__.py"))


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_the_same_files(name):
    folder = ROOT / "dino_kernels" / "ops" / name
    expected = {"__init__.py", "reference.py", "README.md", *(f"{backend}.py" for backend in BACKENDS)}
    assert expected <= {path.name for path in folder.iterdir()}
    assert (ROOT / "tests" / f"test_{name}.py").exists()


def test_every_op_is_public():
    import dino_kernels
    from dino_kernels import functional

    assert sorted(functional.__all__) == OPS
    assert set(functional.__all__) <= set(dino_kernels.__all__)
