"""Size is a promise: short files, and less source than there was."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
MOST_LINES_OF_A_FILE = 400
# 35,385 and 22,600 before data formats, tiles and videos, the report, and checks of what people bring; 41,600 and
# 27,100 before large data and tar shards; 44,200 and 28,800 before steps without waits and with few operations; 44,400
# and 29,100 before compiled and captured steps, native lists of matching, input, and `dino benchmark`; 46,300 and
# 30,000 before exported files, ONNX Runtime's ops, weights by name, wheels and the kernel for the hub; 50,600 and
# 32,600 before DINO's successors; 51,400 and 33,800 before drawings of training, Mr.DETR's routes, the paper's claims
# and the tutorial. Raising a limit needs a reason.
MOST_LINES_OF_SOURCE = {"dino dino_kernels csrc benchmarks": 55_500, "tests": 35_000}


def lines_of(folders: str) -> dict[str, int]:
    """Return the number of lines of each source file."""
    paths = [path for folder in folders.split() for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in paths}


@pytest.mark.parametrize("folders", MOST_LINES_OF_SOURCE)
def test_no_file_is_too_long_to_read(folders):
    long = {path: lines for path, lines in lines_of(folders).items() if lines > MOST_LINES_OF_A_FILE}
    assert not long, f"split along the ideas in them, at most {MOST_LINES_OF_A_FILE} lines each: {long}"


@pytest.mark.parametrize(("folders", "most"), MOST_LINES_OF_SOURCE.items())
def test_the_source_does_not_grow_unnoticed(folders, most):
    lines = sum(lines_of(folders).values())
    assert 0 < lines <= most, f"{folders}: {lines} lines, at most {most}. Remove what is no longer used, or raise it."
