"""A detector of random weights, and an image."""

import pytest

from tests.dino.tools_toys import noise_picture, tiny_detector


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(scope="module")
def picture():
    return noise_picture()
