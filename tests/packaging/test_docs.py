"""Every link, path and command named in the pages exists, the examples run, and the front pages keep their form."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.measure import report

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md",
        ".github/*.md",
        "dino/**/*.md",
        "dino_kernels/**/*.md",
        "benchmarks/**/*.md",
        "tests/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
CODE = (".py", ".cpp", ".cu", ".cuh", ".h")
# Pages with examples that need nothing but this package and a second.
EXAMPLES = ["README.md", *(page for page in PAGES if page.startswith("dino_kernels/ops/"))]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


@cache
def tracked() -> list[str]:
    """Return the paths of all files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Return the relative links of a page whose file or heading is missing."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text() if name else text)):
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """Return the paths in backticks that match no file.

    A path begins with the name of a folder, or is the name of a source file; `<op>` and `*` stand for anything.
    """
    files = tracked()
    folders = {str(parent) for file in files for parent in Path(file).parents}
    names = {Path(folder).name for folder in folders}
    missing = []
    for name in re.findall(r"`([\w./*<>-]+)`", FENCE.sub("", text)):
        pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
        is_path = pattern.partition("/")[0] in names if "/" in pattern else Path(pattern).suffix in CODE
        if is_path and not any(fnmatch(f"/{path}", f"*/{pattern}") for path in (*files, *folders)):
            missing += [name] if not is_ignored(name) else []
    return missing


def is_ignored(path: str) -> bool:
    """Return whether git ignores a path, such as an output that a command writes there."""
    return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


def missing_modules(text: str) -> list[str]:
    """Return the modules of this repository in `python -m MODULE` that do not exist."""
    modules = re.findall(r"python3? -m ((?:dino|dino_kernels|benchmarks)(?:\.\w+)*)\b", text)
    places = {name: ROOT / name.replace(".", "/") for name in modules}
    return [
        name
        for name, place in places.items()
        if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_paths_and_commands_exist(page):
    text = (ROOT / page).read_text()
    assert not broken_links(ROOT / page, text)
    assert not missing_modules(text)
    if page != "CHANGELOG.md":  # names what was moved, too
        assert not missing_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "[x](no_such_file.md)",
        "[x](README.md#no-such-heading)",
        "`csrc/no_such_op/cuda.cu`",
        "`no_such_file.cuh`",
        "`dino/no_such_room`",
        "`python -m benchmarks.no_such_module`",
    ],
)
def test_the_check_catches(text):
    assert broken_links(ROOT / "page.md", text) + missing_paths(text) + missing_modules(text)


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run(page):
    predictions = {"pred_logits": torch.randn(2, 9, 91), "pred_boxes": torch.rand(2, 9, 4)}
    targets = [{"labels": torch.arange(count), "boxes": torch.rand(count, 4)} for count in (1, 3)]
    names = {"outputs": {**predictions, "aux_outputs": [predictions]}, "targets": targets}
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), names)


def test_the_front_pages_share_their_code_and_tables():
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    blocks = [re.sub(r"#.*", "", "\n".join(FENCE.findall(text))) for text in (english, chinese)]
    assert blocks[0] == blocks[1]
    tables = [re.findall(r"<!-- results:.*?<!-- /results -->", text, re.DOTALL) for text in (english, chinese)]
    assert tables[0] == tables[1] and len(tables[0]) == 1
    assert tables[0][0].count("\n|") <= 2 + 6, "the front page has at most six rows of speed"


def test_the_tables_are_those_of_the_published_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    assert report.main() == 0, capsys.readouterr().out


def test_the_guide_names_what_its_files_define():
    rows = re.findall(r"^\| (?:a|an|the|which|what) .*", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    for row in rows:
        words = re.findall(r"`([^` ]+)`", row)
        files = [ROOT / word for word in words if (ROOT / word).is_file()]
        missing = [w for w in words if w.isidentifier() and not any(w in file.read_text() for file in files)]
        assert not missing, f"{row}: {missing}"
    assert len(rows) == 10


def test_the_guide_fits_two_screens():
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert len(lines) <= 112 and max(map(len, lines)) <= 120
