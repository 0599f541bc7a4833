"""In-tree PEP 517 backend: setuptools, plus a torch to compile against where the environment has none.

The headers of any torch from 2.10 on will do (stable ABI), whatever torch runs the result. `requires = ["torch"]`
in pyproject.toml would make every isolated build download the newest CUDA build, so torch is asked for only where
none is found. setup.py finds it with the same functions.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"


def package_folders() -> list[Path]:
    """The site-packages that may hold torch or nvcc, the target environment's first.

    pip's isolation hides the environment's packages from `import`, but sysconfig still names their folder. uv and
    `python -m build` run the build in an environment of their own: then the user's is one on PATH, or uv's .venv.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *filter(os.path.isdir, sys.path)]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    prefixes = [Path(entry).parent for entry in os.environ.get("PATH", "").split(os.pathsep)]
    for prefix in [*prefixes, Path(".venv")]:
        if (prefix / "pyvenv.cfg").is_file() or (prefix / "conda-meta").is_dir():
            folders += sorted(prefix.glob("lib/python3*/site-packages"))
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders))


def torch_version(folder: Path) -> tuple[int, int] | None:
    """(2, 13) for a folder that contains a torch; nothing is imported."""
    version = folder / "torch" / "version.py"
    found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", version.read_text()) if version.is_file() else None
    return (int(found[1]), int(found[2])) if found else None


def find_torch() -> Path | None:
    """The first torch package that is new enough and brings its C++ headers."""
    for folder in package_folders():
        version = torch_version(folder)
        if version and version >= OLDEST_TORCH and (folder / "torch/include/torch/csrc/stable").is_dir():
            return folder / "torch"
    return None


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
