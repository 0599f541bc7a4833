"""The tutorial's pages quote lines that exist, its files are short, and its commands run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.measure.results import published
from benchmarks.tutorial import steps
from dino_kernels.tutorial.attention import run as attention
from dino_kernels.tutorial.matching import run as matching

FOLDER = Path(steps.__file__).parents[2] / "dino_kernels" / "tutorial"
PAGES = ("README.md", "README.zh-CN.md")
FENCE = re.compile(r"^```(python|cpp)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STEP_FILES = sorted(
    path
    for pattern in ("step*.py", "*_rows.py", "definition.py", "*.cpp", "*.cu", "*.h")
    for path in FOLDER.glob(f"*/{pattern}")
)


def quotes(page: str) -> list[tuple[str, str]]:
    """Return (file, lines) of each block of code; the file is the last one linked before."""
    text = (FOLDER / page).read_text()
    return [
        (re.findall(r"\]\(([\w/]+\.(?:py|cpp|h))\)", text[: block.start()])[-1], block[2])
        for block in FENCE.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_quoted_lines_are_in_the_files_in_this_order(page):
    assert len(quotes(page)) >= 12
    for file, code in quotes(page):
        lines = [line.strip() for line in (FOLDER / file).read_text().splitlines()]
        place = -1
        for line in filter(None, map(str.strip, code.splitlines())):
            assert line in lines[place + 1 :], f"{file} has no line {line!r} after the one quoted before"
            place = lines.index(line, place + 1)


def test_the_pages_share_their_code_and_tables():
    texts = [(FOLDER / page).read_text() for page in PAGES]
    assert quotes(PAGES[0]) == quotes(PAGES[1])
    tables = [re.findall(r"<!-- results:.*?<!-- /results -->", text, re.DOTALL) for text in texts]
    assert tables[0] == tables[1] and len(tables[0]) == 4


@pytest.mark.parametrize("page", PAGES)
def test_every_step_has_a_section_that_names_its_command(page):
    text = (FOLDER / page).read_text()
    for chapter, module in ((attention, "attention"), (matching, "matching")):
        for name in {each.module for each in chapter.STEPS.values()}:
            assert f"({module}/{name}.py)" in text, f"{page} links no {name}.py"
    commands = re.findall(r"python -m (dino_kernels\.tutorial[.\w]*)", text)
    assert {"dino_kernels.tutorial", "dino_kernels.tutorial.attention.step4_rows"} == set(commands)


@pytest.mark.parametrize("path", STEP_FILES, ids=lambda path: path.name)
def test_a_step_is_under_80_lines(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("chapter", [attention, matching], ids=["attention", "matching"])
def test_every_step_is_a_module_that_runs_by_itself(chapter):
    package = chapter.__name__.rpartition(".")[0]
    for name in {each.module for each in chapter.STEPS.values()}:
        text = (FOLDER / package.rpartition(".")[2] / f"{name}.py").read_text()
        assert f"python -m {package}.{name}\n" in text and f'main("{name}")' in text


def test_published_results_are_of_these_steps_and_one_thread():
    for path in published(steps.FILE_NAME):
        document = json.loads(path.read_text())
        assert document["machine"]["threads"] == 1
        known = {*attention.STEPS, *matching.STEPS}
        assert {row["step"] for row in document["attention"] + document["matching"]} <= known
        assert all(row["error"] <= 1e-2 for row in document["attention"])


def test_the_tables_of_results(monkeypatch):
    monkeypatch.setattr(steps, "SECONDS", 0.0)
    monkeypatch.setattr(steps, "LEAST_LAPS", 1)
    from dino_kernels.tutorial.attention.problem import SMALL
    from dino_kernels.tutorial.matching.problem import step

    document = {
        "attention": steps.attention_rows(SMALL, "cpu"),
        "matching": steps.matching_rows(step(matching.CASES[0]), "coco"),
    }
    table = steps.attention_table(document)
    assert [row[1] for row in table[1:]] == ["1 loop", "2 vectors", *steps.contestants(SMALL, "cpu")]
    assert all(len(row) == len(table[0]) for row in table)
    by_step = {row[1]: row for row in table[3:]}
    assert by_step["3 fused softmax"][5:8] == ["-"] * 3 and by_step["4 row by row"][6].endswith("x")
    assert [row[1] for row in steps.matching_table(document)[1:]] == [*matching.STEPS]
    for chapter in ("attention", "matching"):
        counted = steps.counted_table(document, chapter)
        assert len(counted) > 5 and all(len(row) == 3 for row in counted)
