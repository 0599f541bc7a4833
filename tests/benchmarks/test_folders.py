"""The folders of benchmarks/ import one another in one direction, and no files import one another in a circle."""

import ast
from graphlib import TopologicalSorter

from benchmarks.measure.machine import ROOT

# Folder, or one file: the folders it may use.
FOLDERS = {
    "measure": "",
    "attention": "measure",
    "matching": "measure attention",
    "detector": "measure attention",
    "claims": "measure",
    "sass": "measure matching",
    "gpu": "measure attention matching",
    "tutorial": "measure",
    "measure/report": "measure attention matching detector claims sass gpu tutorial",
    "conftest": "measure measure/report attention matching",
    "": "",
}


def test_imports_follow_the_table_and_form_no_circle():
    files = {path.relative_to(ROOT / "benchmarks").as_posix()[:-3] for path in (ROOT / "benchmarks").rglob("*.py")}
    folder_of = {name: name if name in FOLDERS else name.rpartition("/")[0] for name in files}
    graph = {}
    for name in files:
        tree = ast.parse((ROOT / f"benchmarks/{name}.py").read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported = {str(n.module) for n in nodes} | {f"{n.module}.{alias.name}" for n in nodes for alias in n.names}
        graph[name] = files & {module.removeprefix("benchmarks.").replace(".", "/") for module in imported}
        allowed = {folder_of[name], *FOLDERS[folder_of[name]].split()}
        assert {folder_of[other] for other in graph[name]} <= allowed, f"{name} may use {allowed}, uses {graph[name]}"
    assert len(list(TopologicalSorter(graph).static_order())) == len(files) > 50
