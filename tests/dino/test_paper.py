"""The guided tour of the paper: its examples run one after the other, and both languages have the same ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "dino"
TEXTS = {name: (FOLDER / name).read_text() for name in ("PAPER.md", "PAPER.zh-CN.md")}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_examples_run() -> None:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(TEXTS["PAPER.md"])):
        exec(compile(block, f"PAPER.md, example {number}", "exec"), names)
    assert number > 5


@pytest.mark.parametrize(
    "pattern",
    [r"#.*", r"<!-- results:.*?<!-- /results -->", r"\]\(([^)]+\.(?:png|jpg))\)", r"^## (\d+)", r"\$\$.*?\$\$"],
    ids=["code", "tables", "figures", "sections", "equations"],
)
def test_both_languages_have_the_same(pattern: str) -> None:
    def found(text: str) -> list[str]:
        if pattern == r"#.*":  # comments and docstrings are translated
            return [re.sub(r'#.*|""".*?"""', "", block) for block in blocks(text)]
        return re.findall(pattern, text, re.DOTALL | re.MULTILINE)

    english, chinese = (found(text) for text in TEXTS.values())
    assert len(english) >= 5
    assert english == chinese
