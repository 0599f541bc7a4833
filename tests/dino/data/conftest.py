from __future__ import annotations

from pathlib import Path

import pytest

from tests.dino.data.data_examples import DOCUMENT, write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images of DOCUMENT in `images/`."""
    write_images(tmp_path / "images", DOCUMENT["images"])
    return tmp_path
