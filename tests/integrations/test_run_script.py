"""`python -m dino_kernels.integrations.original SCRIPT` is `python SCRIPT` with the compiled module provided."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import argparse, os, pickle, sys
from ops import MSDA  # beside the script

class Settings:
    pass

def deeper(kind):
    raise kind("broken")

if __name__ == "__main__":
    assert type(pickle.loads(pickle.dumps(Settings()))) is Settings
    print(sys.argv, sys.path[0], __file__, __spec__, sorted(globals()))
    mode = sys.argv[1]
    if mode == "exit":
        sys.exit(int(sys.argv[2]))
    if mode == "text":
        sys.exit("a message")
    if mode == "parse":
        argparse.ArgumentParser().parse_args(["--no"])
    if mode == "raise":
        deeper(ValueError)
    if mode == "chain":
        try:
            deeper(ValueError)
        except ValueError as error:
            raise KeyError("second") from error
    if mode == "interrupt":
        deeper(KeyboardInterrupt)
"""
OPS = "import MultiScaleDeformableAttention as MSDA\n"
TRAIN = """
import sys
import torch
from ops import MSDA

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return MSDA.ms_deform_attn_forward.__module__

if __name__ == "__main__":
    from groundingdino import _C
    value, centre, whole = torch.rand(1, 4, 2, 8), torch.full((1, 1, 2, 1, 1, 2), 0.5), torch.ones(1, 1, 2, 1, 1)
    out = MSDA.ms_deform_attn_forward(value, torch.tensor([[2, 2]]), torch.tensor([0]), centre, whole, 64)
    torch.testing.assert_close(out[0, 0].view(2, 8), value[0].mean(0))
    assert _C.ms_deform_attn_forward is MSDA.ms_deform_attn_forward
    loader = torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context=sys.argv[1])
    print([names for names in loader])
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two scripts, and a module that stands for the compiled one when Python runs them itself."""
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "MultiScaleDeformableAttention.py").write_text("")
    root = tmp_path / "checkout"
    (root / "groundingdino").mkdir(parents=True)
    (root / "groundingdino" / "__init__.py").write_text("")
    for name, text in (("main.py", MAIN), ("ops.py", OPS), ("train.py", TRAIN), ("damaged.py", "def f(:\n")):
        (root / name).write_text(text)
    return root


def run(folder: Path, *command: str, path: str | Path = "") -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [path, *sys.path])))}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "main.py fine --lr 1e-4",
        "main.py exit 7",
        "main.py text",
        "main.py parse",
        "main.py raise",
        "main.py chain",
        "main.py interrupt",
        "damaged.py",
        "checkout/main.py raise",
    ],
)
def test_code_output_and_traceback_are_those_of_python(checkout: Path, arguments: str) -> None:
    folder = checkout.parent if "/" in arguments else checkout
    expected = run(folder, *arguments.split(), path=checkout.parent / "compiled")
    found = run(folder, "-m", "dino_kernels.integrations.original", *arguments.split())
    assert found == expected
    assert arguments.endswith(".py") or "main.py" in found[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_modules_are_there_for_the_script_and_its_workers(checkout: Path, method: str) -> None:
    code, output, errors = run(checkout, "-m", "dino_kernels.integrations.original", "train.py", method)
    assert code == 0, errors
    assert output.count("dino_kernels.integrations.original") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "usage: python -m dino_kernels.integrations.original SCRIPT"),
        (["--help"], 0, "Run a checkout's script, unmodified"),
        (["missing.py"], 2, "missing.py': No such file or directory"),
        (["groundingdino"], 2, "groundingdino': Is a directory"),
    ],
)
def test_what_cannot_be_run_is_named(checkout: Path, arguments: list[str], code: int, words: str) -> None:
    found, output, errors = run(checkout, "-m", "dino_kernels.integrations.original", *arguments)
    assert found == code and words in output + errors and "Traceback" not in errors
