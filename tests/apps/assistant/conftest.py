"""Lets the tests import what they share (`scripted`, `live_site`, `xss_vectors`), and gives them databases."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "web")]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place for a database: a directory, or a schema of its own in the database that PUNA_TEST_POSTGRES names."""
    if request.param == "sqlite":
        yield str(tmp_path / "data")
        return
    url = os.environ.get("PUNA_TEST_POSTGRES")
    if not url:
        pytest.skip("needs a Postgres database: set PUNA_TEST_POSTGRES to its URL")
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'puna[postgres]'")
    schema = f"puna_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(f"create schema {schema}")
        yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
        database.execute(f"drop schema {schema} cascade")
