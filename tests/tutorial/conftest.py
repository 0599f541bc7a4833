"""Compile the tutorial's steps into a folder of this run, not into the user's cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dino_kernels.tutorial import native


@pytest.fixture(autouse=True, scope="session")
def compiled_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    native.load.cache_clear()
    yield
    native.load.cache_clear()
    patch.undo()
