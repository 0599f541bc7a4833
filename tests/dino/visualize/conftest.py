"""A small detector and a picture, for all drawings."""

from __future__ import annotations

import pytest

from tests.dino.tools_toys import noise_picture, tiny_detector


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(scope="module")
def picture():
    return noise_picture(160, 120)
