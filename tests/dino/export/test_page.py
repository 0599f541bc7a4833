"""The page that leads from a wheel to ONNX Runtime: its commands and its program run, here in small."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import dino_kernels.onnx
from dino import commands
from dino.commands import demo
from tests.dino.export.export_toys import SMALL

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(dino_kernels.onnx.why_missing() is not None, reason=str(dino_kernels.onnx.why_missing())),
]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "dino/export/README.md").read_text()
INSTALL, RUN = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[:2]
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# A fixed size is traced in a quarter of the time.
SHORTER = {"demo": ["--train-images", "16", "--valid-images", "3"], "export": ["--size", "160x160"]}


def in_small(text: str, changes: dict[str, str]) -> str:
    """Replace each key by its value; every key must be there."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(demo.PRESETS["dino_tiny"], **{**SMALL, "num_classes": 91})
    monkeypatch.setitem(demo.PRESETS, "dino_tiny", small)
    monkeypatch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, optimize=False))
    for line in RUN.splitlines():
        python, module, package, *arguments = shlex.split(line)
        assert (python, module, package) == ("python", "-m", "dino")
        arguments += SHORTER[arguments[0]]
        assert commands.main(arguments) == 0, line
    said = capsys.readouterr().out
    precisions = re.findall(r"^(model|file) +([\d.]+) +([\d.]+) +([\d.]+)$", said, re.MULTILINE)
    assert [row[0] for row in precisions] == ["model", "file"] * 2
    assert precisions[0][1:] == precisions[1][1:] == precisions[3][1:]
    # A model of two steps is sure of nothing.
    program = in_small(
        PROGRAM, {"THRESHOLD = 0.3": "THRESHOLD = 0.02", "(480, 640)": "(160, 160)", "range(20)": "range(3)"}
    )
    exec(compile(program, "page", "exec"), {})
    same, *speeds = capsys.readouterr().out.splitlines()
    assert int(re.match(r"(\d+) detections in 3 images are the same", same)[1]) > 0  # type: ignore[index]
    assert [re.sub(r"[\d.]+ ms", "ms", line) for line in speeds] == [
        f"{size}:  digits.onnx ms  digits-op.onnx ms" for size in ("160x160", "160x160")
    ]


def test_what_the_page_installs_exists():
    make, _, install = INSTALL.splitlines()
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in make.split()[1:] if "=" not in word} <= set(targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"\[(\w+)\]", install)[1] in extras  # type: ignore[index]
    assert re.search(r"TOOLS=(\w+)", make)[1] in extras  # type: ignore[index]


@pytest.mark.install_matrix
def test_the_page_in_a_new_environment(tmp_path):
    """All of it as it stands, on a copy of the source tree: minutes."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    make, *install = INSTALL.splitlines()
    # The tools of `make wheel-tools` are this environment's; away from the source tree, `dino` is the wheel's.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "program.py").write_text(PROGRAM)
    script = [make.replace("wheel-tools ", ""), "mkdir elsewhere/dist && cp dist/*.whl elsewhere/dist", "cd elsewhere"]
    script += [*install, *RUN.splitlines(), "python program.py"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-euc", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert re.search(r"^\d+ detections in 200 images are the same", done.stdout, re.MULTILINE)
