"""Read the `data.yaml` of a data set in YOLO's format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dino.data.coco.lenient import whole
from dino.data.coco.problems import DatasetError, shown
from dino.data.folders import files_in
from dino.data.split import text_of

_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
_IS_DATA = re.compile(r"^(names|nc)\s*:", re.MULTILINE)
_HAS_SPLIT = re.compile(r"^(train|val|valid|test)\s*:", re.MULTILINE)

Described = tuple[Path, dict[int, str], dict[str, list[str]]]


def find(root: Path) -> Described | None:
    """Return the file, the names by class index, and the entries of each split; None if there is no such file.

    Raises:
        DatasetError: the file is not valid, or there is more than one.
        ImportError: PyYAML is missing.
    """
    if root.is_file():
        return _read(root) if root.suffix.lower() in (".yaml", ".yml") else None
    files = [file for file in files_in(root, ".yaml", ".yml") if _describes_data(file)]
    if len(files) > 1:
        raise DatasetError(
            f"{root}: has {' and '.join(file.name for file in files)}, more than one description of YOLO data. Pass "
            f"one as --data, for example {files[0]}."
        )
    return _read(files[0]) if files else None


def _describes_data(file: Path) -> bool:
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    return bool(_IS_DATA.search(text) and _HAS_SPLIT.search(text))


def _read(file: Path) -> Described:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{file}: reading it needs PyYAML: pip install pyyaml") from error
    try:
        # All values stay text: a class may be called "no" or "1".
        content = yaml.load(text_of(file, file.name), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DatasetError(f"{file.name}: is not valid YAML: {' '.join(str(error).split())}.") from error
    if type(content) is not dict:
        raise DatasetError(f"{file.name}: must have names and train, got {shown(content)}.")
    base = content.get("path")
    entries = {
        split: _entries(file, content[key], base if type(base) is str else "")
        for split, keys in _KEYS.items()
        for key in keys
        if content.get(key) not in (None, "", "null", "~", [])
    }
    if not entries:
        raise DatasetError(f"{file.name}: has no train or val entry, got {sorted(content)}.")
    return file, _names(file, content), entries


def _entries(file: Path, value: Any, base: str) -> list[str]:
    values = value if type(value) is list else [value]
    if not all(type(entry) is str for entry in values):
        raise DatasetError(f"{file.name}: an entry must be a folder, a file or a list of them, got {shown(value)}.")
    entries = []
    for entry in values:
        below = Path(base.replace("\\", "/")) / entry.replace("\\", "/")
        entries.append(str(below) if base and (file.parent / below).exists() else entry)
    return entries


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), whole(content.get("nc", ""))
    if type(names) is list:
        names = dict(enumerate(names))
    elif type(names) is dict:
        names = {whole(key): name for key, name in names.items()}
    elif names is None and type(count) is int and count > 0:
        names = {k: f"class {k}" for k in range(count)}
    if type(names) is not dict or not names or not all(type(k) is int and type(v) is str for k, v in names.items()):
        raise DatasetError(
            f"{file.name}: names must be a list of names, or numbers with names, got {shown(content.get('names'))}."
        )
    return names
