"""Opening databases: migrations of each product on their own, backups, and databases of a newer Puna."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import MetaData, create_engine

from puna.apps.assistant.schema import SCHEMA as ASSISTANT
from puna.core.errors import PunaError
from puna.web import database
from puna.web.accounts.schema import SCHEMA as ACCOUNTS
from puna.web.database import NewerDatabaseError, Schema

FIRST = '''"""Create."""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "{name}_1", None
def upgrade():
    op.create_table("{name}", sa.Column("id", sa.Integer, primary_key=True))
'''
SECOND = '''"""Add a column."""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "{name}_2", "{name}_1"
def upgrade():
    op.add_column("{name}", sa.Column("added", sa.Text))
'''
BROKEN = SECOND.replace("op.add_column", "op.add_column_that_is_not_there")


def product(tmp_path: Path, name: str, *revisions: str) -> Schema:
    """A product whose migrations are these."""
    directory = tmp_path / "migrations" / name
    directory.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(revisions):
        (directory / f"r{number}.py").write_text(text.replace("{name}", name))
    return Schema(name, MetaData(), directory)


def columns(file: Path, table: str) -> list[str]:
    with sqlite3.connect(file) as raw:
        return [row[1] for row in raw.execute(f"pragma table_info({table})")]


def test_products_are_upgraded_each_on_its_own(tmp_path: Path) -> None:
    data, file = str(tmp_path / "data"), tmp_path / "data" / "assistant.db"
    red = product(tmp_path, "red", FIRST)
    database.open(data, [red]).dispose()
    assert columns(file, "red") == ["id"]
    blue = product(tmp_path, "blue", FIRST)
    database.open(data, [red, blue]).dispose()  # a second product joins
    assert columns(file, "blue") == ["id"]
    assert not list(file.parent.glob("*before*.db"))
    with sqlite3.connect(file) as raw:
        raw.execute("insert into red values (7)")
    red = product(tmp_path, "red", FIRST, SECOND)
    database.open(data, [red, blue]).dispose()
    assert columns(file, "red") == ["id", "added"]
    assert columns(file, "blue") == ["id"]
    (saved,) = file.parent.glob("*before*.db")
    assert columns(saved, "red") == ["id"]
    with sqlite3.connect(saved) as raw:
        assert raw.execute("select id from red").fetchall() == [(7,)]


def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    data, file = str(tmp_path / "data"), tmp_path / "data" / "assistant.db"
    red, blue = product(tmp_path, "red", FIRST), product(tmp_path, "blue", FIRST)
    database.open(data, [red, blue]).dispose()
    product(tmp_path, "red", FIRST, SECOND)
    product(tmp_path, "blue", FIRST, BROKEN)
    with pytest.raises(AttributeError):
        database.open(data, [red, blue])
    assert columns(file, "red") == ["id"]  # the first product's migration is undone with the second's
    (tmp_path / "migrations" / "blue" / "r1.py").write_text(SECOND.replace("{name}", "blue"))
    database.open(data, [red, blue]).dispose()
    assert columns(file, "red") == columns(file, "blue") == ["id", "added"]


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    data, file = str(tmp_path / "data"), tmp_path / "data" / "assistant.db"
    red = product(tmp_path, "red", FIRST, SECOND)
    database.open(data, [red]).dispose()
    (tmp_path / "migrations" / "red" / "r1.py").unlink()
    with pytest.raises(NewerDatabaseError, match=r"newer Puna \(schema red_2; this one knows red_1\)"):
        database.open(data, [red])
    assert columns(file, "red") == ["id", "added"]


@pytest.mark.parametrize("schema", [ASSISTANT, ACCOUNTS], ids=lambda schema: schema.name)
def test_migrations_make_what_the_tables_say(tmp_path: Path, schema: Schema) -> None:
    """A column that is added to a table without a migration fails here."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = database.open(str(tmp_path), [schema])
    with engine.connect() as connection:
        ours = {schema.version_table, *schema.metadata.tables}
        options = {"compare_type": True, "include_name": lambda name, kind, _: kind != "table" or name in ours}
        context = MigrationContext.configure(connection, opts={"version_table": schema.version_table, **options})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_two_servers_open_one_new_database(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: database.open(str(tmp_path), [ACCOUNTS, ASSISTANT]), range(4)))
    for engine in engines:
        engine.dispose()
    assert "id" in columns(tmp_path / "assistant.db", "accounts")


def test_places_that_are_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="mysql database"):
        database.open("mysql://localhost/x", [])
    (tmp_path / "assistant.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(PunaError, match="cannot be opened"):
        database.open(str(tmp_path), [ACCOUNTS])


def test_foreign_keys_hold_after_opening(tmp_path: Path) -> None:
    engine = database.open(str(tmp_path), [ACCOUNTS])
    with engine.connect() as connection:
        assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
    engine.dispose()
    raw = create_engine(f"sqlite:///{tmp_path / 'assistant.db'}")
    with raw.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
    raw.dispose()
