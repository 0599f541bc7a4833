"""`python -m dino_kernels.integrations.original SCRIPT` is `python SCRIPT` with the compiled module provided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
# Imports torch once, and becomes `python -m dino_kernels.integrations.original` in a process forked for each line.
FORKS = """
import gc, json, os, runpy, sys
import dino_kernels.nn

gc.freeze()  # processes end sooner
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
folder, arguments, outputs = json.loads(line)
os.chdir(folder)
for number, output in enumerate(outputs, start=1):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
sys.path[0], sys.argv[1:] = folder, arguments
runpy._run_module_as_main("dino_kernels.integrations.original")
"""
Result = tuple[int, str, str]


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


def environment(path: str | Path = "") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [path, *sys.path])))}


def run(folder: Path, *command: str, path: str | Path = "") -> Result:
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=folder, env=environment(path), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def run_original(folder: Path, *arguments: str) -> Result:
    return run(folder, "-m", "dino_kernels.integrations.original", *arguments)


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    command, pipe = (sys.executable, "-c", FORKS), subprocess.PIPE
    with subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True) as process:
        yield process


@pytest.fixture
def fork_original(forks: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Result]:
    """`run_original`, in a process that has imported torch."""

    def fork(folder: Path, *arguments: str) -> Result:
        outputs = tmp_path / "out.txt", tmp_path / "err.txt"
        assert forks.stdin is not None and forks.stdout is not None
        print(json.dumps((str(folder), arguments, [*map(str, outputs)])), file=forks.stdin, flush=True)
        code = int(forks.stdout.readline())
        return code, *(output.read_text() for output in outputs)  # pyright: ignore[reportReturnType]

    return fork


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
def test_code_output_and_traceback_are_those_of_python(
    fork_original: Callable[..., Result], checkout: Path, arguments: str
) -> None:
    folder = checkout.parent if "/" in arguments else checkout
    expected = run(folder, *arguments.split(), path=checkout.parent / "compiled")
    found = fork_original(folder, *arguments.split())
    assert found == expected
    assert arguments.endswith(".py") or "main.py" in found[1]


def test_a_new_process_gives_what_a_forked_one_does(fork_original: Callable[..., Result], checkout: Path) -> None:
    assert run_original(checkout, "main.py", "chain") == fork_original(checkout, "main.py", "chain")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_modules_are_there_for_the_script_and_its_workers(
    fork_original: Callable[..., Result], checkout: Path, method: str
) -> None:
    start = fork_original if method == "fork" else run_original
    code, output, errors = start(checkout, "train.py", method)
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
def test_what_cannot_be_run_is_named(
    fork_original: Callable[..., Result], checkout: Path, arguments: list[str], code: int, words: str
) -> None:
    found, output, errors = fork_original(checkout, *arguments)
    assert found == code and words in output + errors and "Traceback" not in errors
