"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared real data (weights, vectors, corpora). Skips without PUNA_TEST_DATA."""
    place = os.environ.get("PUNA_TEST_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("needs the shared test data: set PUNA_TEST_DATA to its folder")
    return Path(place)
