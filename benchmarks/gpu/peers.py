"""Download peers of the GPU suite for a machine without network into peers/, which git ignores.

    python3 -m benchmarks.gpu.peers --python 3.12

downloads the wheels of PEERS for that Python into peers/wheels and unpacks them into peers/site. Carry peers/site to
the machine with the GPU and put it first on PYTHONPATH; torch and triton stay that machine's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.machine import ROOT

FOLDER = ROOT / "peers"
PEERS = ("deformops==3.0.1", "torch-linear-assignment==0.1.0", "lapx==0.11.1")
# `import dino` requires these, and tests/gpu/test_criterion.py imports it.
DETECTOR = ("pillow", "safetensors", "faster-coco-eval", "tqdm", "tyro", "docstring-parser", "typeguard")
# pip matches names exactly, so the older ones are listed too.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def commands(python: str, peers: Sequence[str], folder: Path) -> list[list[str]]:
    """Return the commands that download and unpack wheels without dependencies, which the GPU's machine has."""
    version = [f"--python-version={python}", "--implementation=cp", f"--abi=cp{python.replace('.', '')}"]
    target = [*version, "--abi=abi3", "--abi=none", "--only-binary=:all:", "--no-deps"]
    target += [f"--platform={name}" for name in (*PLATFORMS, "any")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels, site = folder / "wheels", folder / "site"
    # The wheels are for that Python; pip would compare their requirements with the Python that runs it.
    local = ["--ignore-requires-python", "--no-index", f"--find-links={wheels}", "--upgrade", f"--target={site}"]
    return [
        [*pip, "download", *target, f"--dest={wheels}", *peers],
        [*pip, "install", *target, *local, *peers],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine with the GPU (3.12)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="target folder (peers/)")
    parser.add_argument("peer", nargs="*", default=[*PEERS, *DETECTOR], help="NAME[==VERSION]")
    options = parser.parse_args()
    for command in commands(options.python, options.peer, options.folder):
        finished = subprocess.run(command, check=False)
        if finished.returncode != 0:
            print(f"failed: {' '.join(command)}", file=sys.stderr)
            return finished.returncode
    site = options.folder / "site"
    print(f"in {site}: {', '.join(sorted(path.name for path in site.glob('*.dist-info')))}")
    print("on the machine with the GPU: PYTHONPATH=peers/site make gpu-measure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
