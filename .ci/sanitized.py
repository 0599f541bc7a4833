"""Tell whether the sanitizers passed on this code: exit code 0 if .ci/sanitized.txt has it, else 1.

`make sanitize` adds a line with --write: a hash of the code that the sanitizers run, the instruction set of the
processor, which chooses the CPU kernels, the compiler and torch. Commit the file. Under any other code, processor,
compiler or torch, `.ci/run` runs the sanitizers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / ".ci/sanitized.txt"
CODE = ["csrc", "dino_kernels", "tests/ops", "tests/onnx", "tests/cuda", "tests/conftest.py"]
CODE += ["setup.py", "pyproject.toml", "Makefile"]
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import find_compiler  # noqa: E402


def line() -> str:
    """Return what was, or is to be, sanitized."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *CODE]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        if (file := ROOT / name).is_file() and file.suffix != ".md":
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    compiler = subprocess.run([*find_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    parts = [digest.hexdigest(), torch.backends.cpu.get_cpu_capability(), compiler.splitlines()[0]]
    return "  ".join([*parts, f"torch {torch.__version__.partition('+')[0]}"])


def main() -> int:
    current = line()
    passed = FILE.read_text(encoding="utf-8").splitlines() if FILE.is_file() else []
    if "--write" in sys.argv[1:]:
        same_code = [other for other in passed if other.split()[0] == current.split()[0]]
        FILE.write_text("".join(f"{each}\n" for each in sorted({*same_code, current})), encoding="utf-8")
        return 0
    print(f"sanitizers: {'passed before' if current in passed else 'not run yet'} on {current}")
    return 0 if current in passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
