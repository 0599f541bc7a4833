"""The workflows: each step is a make target that runs anywhere, and every file has the form it must have."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
SCHEMAS = [
    *((path, "github-workflows") for path in WORKFLOWS),
    *((path, "github-issue-forms") for path in FORMS),
    (ROOT / ".github/ISSUE_TEMPLATE/config.yml", "github-issue-config"),
    (ROOT / ".github/dependabot.yml", "dependabot"),
    (ROOT / "CITATION.cff", "citation-file-format"),
]
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))

if not WORKFLOWS:
    pytest.skip("a source distribution has no workflows", allow_module_level=True)


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


def problems(workflow: dict[str, Any]) -> list[str]:
    """Return the steps that are no make targets, and what a workflow must set."""
    found = []
    for step in steps(workflow):
        program, *words = step.get("run", "make").split()
        targets = [word for word in words if not word.startswith("-") and "=" not in word]
        missing = sorted(set(targets) - TARGETS)
        if program != "make" or missing or ("run" in step and not targets):
            found.append(f"{step['run']!r} is no target of the Makefile")
        if step.get("uses", "").startswith("actions/checkout@") and not step.get("with"):
            found.append("a checkout keeps the token for later steps")
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("permissions must be `contents: read`; a job that needs more says so")
    for name, job in workflow["jobs"].items():
        if "uses" not in job and "timeout-minutes" not in job:
            found.append(f"job {name} has no timeout")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_is_a_make_target(path):
    assert problems(yaml.safe_load(path.read_text())) == []
    assert "://" not in path.read_text(), "workflows name no hosts"


@pytest.mark.parametrize(
    "step", [{"run": "pip install x"}, {"run": "make no-such-target"}, {"run": "make"}, {"uses": "actions/checkout@v4"}]
)
def test_the_check_catches(step):
    workflow = {"permissions": {"contents": "read"}, "jobs": {"job": {"timeout-minutes": 1, "steps": [step]}}}
    assert len(problems(workflow)) == 1


@pytest.mark.parametrize(("path", "schema"), SCHEMAS, ids=lambda value: getattr(value, "name", value))
def test_files_follow_their_schemas(path, schema):
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_forms_ask_for_the_report():
    assert FORMS
    for path in FORMS:
        fields = yaml.safe_load(path.read_text())["body"]
        (report,) = (field for field in fields if field.get("id") == "report")
        assert "python -m dino_kernels --json" in report["attributes"]["label"]
        assert report["validations"]["required"]


def load_release() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci/release.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release_needs_one_version_everywhere():
    check = load_release().problems
    citation = "version: 1.2.0\ndate-released: 2026-01-01\n"
    assert check("v1.2.0", "1.2.0", "# Changelog\n\n## 1.2.0\n", citation) == []
    assert "tag must be 'v1.2.0'" in check("v1.2.1", "1.2.0", "## 1.2.0\n", citation)[0]
    assert "CHANGELOG.md" in check("v1.2.0", "1.2.0", "## 1.2.0 (unreleased)\n", citation)[0]
    assert len(check("v1.2.0", "1.2.0", "## 1.2.0\n", "version: 1.1.0\n")) == 2


def test_the_citation_has_the_version_of_the_package():
    from dino_kernels import __version__

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
