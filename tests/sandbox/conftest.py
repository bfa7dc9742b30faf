"""Warm processes that the tests of this room share, one for each ceiling."""

import sys
from collections.abc import Iterator

import pytest

from puna.sandbox.worker import Sandbox

if not sys.platform.startswith("linux"):
    collect_ignore = ["test_attacks.py", "test_run.py", "test_ordinary_user.py"]  # untrusted code runs on Linux only


@pytest.fixture(scope="session")
def isolated() -> Iterator[Sandbox]:
    """The best this machine has; skips where that is not "isolated", naming the walls that are missing."""
    sandbox = Sandbox()
    if sandbox.level != "isolated":
        missing = {name: why for name, why in sandbox.walls.items() if why}
        sandbox.close()
        pytest.skip(f"this machine reaches '{sandbox.level}' only: {missing}")
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="session")
def confined() -> Iterator[Sandbox]:
    """The level "confined", which needs seccomp and Landlock."""
    sandbox = Sandbox("confined")
    if sandbox.level != "confined":
        missing = {name: why for name, why in sandbox.walls.items() if why}
        sandbox.close()
        pytest.skip(f"this machine reaches '{sandbox.level}' only: {missing}")
    yield sandbox
    sandbox.close()
