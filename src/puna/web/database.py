"""Opens the database and brings it up to date: SQLite in a directory, or Postgres by URL.

Each product has a `Schema`: its tables, and a directory of Alembic revisions with a version table of its own, so
products are upgraded independently within one database. A SQLite file is backed up before it is changed.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Boolean

from puna.core.errors import PunaError
from puna.core.files import disk_errors
from puna.web.text import fold

FILE = "assistant.db"
"""The SQLite file. The name is the first product's; the tables of all products are in it."""
BUSY_MILLISECONDS = 5000  # how long a writer waits for another before SQLite gives up
_POSTGRES_LOCK = 0x50554E41  # an arbitrary number: of several servers that start at once, one migrates

log = logging.getLogger("puna.web")


@dataclass(frozen=True)
class Schema:
    """The tables of one product. migrations: the directory of its Alembic revisions.

    legacy: the revision of a database that is older than version tables, or None when it has none of these tables. It
    raises NewerDatabaseError for one that it does not know.
    """

    name: str
    metadata: MetaData
    migrations: Path
    legacy: Callable[[Connection], str | None] = lambda connection: None

    @property
    def version_table(self) -> str:
        """The table that holds the current revision."""
        return f"puna_version_{self.name}"


class NewerDatabaseError(PunaError):
    """The database was written by a newer version of Puna."""

    def __init__(self, version: str, known: str) -> None:
        super().__init__(
            f"The database was written by a newer Puna (schema {version}; this one knows {known}).",
            "Upgrade Puna, or choose another place with --data.",
        )


class contains_folded(GenericFunction[bool]):
    """Whether a column contains a text, whatever the case and form of its letters. Nothing in it is a wildcard."""

    type = Boolean()
    inherit_cache = True


@compiles(contains_folded, "sqlite")
def _in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    column, text = (compiler.process(clause, **options) for clause in element.clauses)
    return f"instr(puna_fold({column}), puna_fold({text})) > 0"


@compiles(contains_folded, "postgresql")
def _in_postgres(element: Any, compiler: Any, **options: Any) -> str:
    """Postgres has casefold() only from 18; its lower() differs in a few letters, which are replaced."""

    def folded(clause: Any) -> str:
        text = f"lower(normalize({compiler.process(clause, **options)}, NFKC))"
        for letter, plain in (("ß", "ss"), ("ς", "σ"), ("i\u0307", "i"), ("İ", "i")):
            text = f"replace({text}, '{letter}', '{plain}')"
        return text

    column, text = (folded(clause) for clause in element.clauses)
    return f"strpos({column}, {text}) > 0"


def open(place: str, schemas: Sequence[Schema]) -> Engine:
    """Open a database, creating and migrating its tables.

    place: a directory for SQLite, or a Postgres URL.

    Raises PunaError when it cannot be opened, and NewerDatabaseError when a newer Puna wrote it.
    """
    engine = _postgres(place) if "://" in place else _sqlite(Path(place))
    try:
        with _exclusive(engine) as connection:
            _migrate(connection, schemas)
    except DBAPIError as error:
        engine.dispose()
        shown = engine.url.render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no answer"
        raise PunaError(f"The database {shown} cannot be opened ({reason}).", "Check --data.") from None
    except BaseException:
        engine.dispose()
        raise
    return engine


# -- migrations ------------------------------------------------------------------------------------------------------


@contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that keeps other servers from migrating at the same time."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.detach()  # its foreign keys are off, so the pool must not get it back
            # SQLite rebuilds a table by dropping the old one, which with foreign keys on would delete its children.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
        yield connection
        if engine.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise PunaError("A migration would leave rows without their parents.", "Nothing was changed; report this.")
        connection.commit()


def _migrate(connection: Connection, schemas: Sequence[Schema]) -> None:
    behind = []
    for schema in schemas:
        current, head = _revisions(connection, schema)
        if current != head:
            behind.append((schema, current))
    known = "-".join(current for _, current in behind if current is not None)
    if known and connection.dialect.name == "sqlite":
        _back_up(connection, known)
    for schema, _ in behind:
        _upgrade(connection, schema)


def _revisions(connection: Connection, schema: Schema) -> tuple[str | None, str]:
    """The revision of the database and the newest one.

    A database without a version table gets one.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    script = ScriptDirectory(str(schema.migrations), version_locations=[str(schema.migrations)])
    head = script.get_current_head()
    assert head is not None
    context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
    current = context.get_current_revision()
    legacy = schema.legacy(connection)
    if current is None and legacy is not None:
        context.stamp(script, legacy)
        current = legacy
    if current is not None:
        try:
            script.get_revision(current)
        except CommandError:
            raise NewerDatabaseError(current, head) from None
    return current, head


def _upgrade(connection: Connection, schema: Schema) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(schema.migrations), version_locations=[str(schema.migrations)])

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=schema.metadata,
            version_table=schema.version_table,
            render_as_batch=connection.dialect.name == "sqlite",
        )
        environment.run_migrations()


def _back_up(connection: Connection, revision: str) -> None:
    """Copy a SQLite file next to itself.

    The caller holds the write lock, so nothing changes meanwhile.
    """
    source = Path(str(connection.engine.url.database))
    target = source.with_name(f"{source.stem}-before-upgrade-from-{revision}.db")
    with disk_errors(target):
        target.touch(mode=0o600)
        with sqlite3.connect(source) as reader, sqlite3.connect(target) as writer:
            reader.backup(writer)
        reader.close()
        writer.close()
    log.warning("The database is being upgraded. Its previous state was saved as %s.", target)


# -- engines ---------------------------------------------------------------------------------------------------------


def _sqlite(directory: Path) -> Engine:
    """A SQLite file in a directory that only its owner may enter."""
    with disk_errors(directory / FILE):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(f"sqlite:///{directory / FILE}")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
        connection.create_function("puna_fold", 1, fold, deterministic=True)

    return engine


def _postgres(url: str) -> Engine:
    """A Postgres database by its URL, postgres:// or postgresql://."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise PunaError(
            "--data is neither a directory nor a database URL.", "Give postgresql://user@host/name."
        ) from None
    if parsed.get_backend_name() not in ("postgres", "postgresql"):
        raise PunaError(f"--data names a {parsed.get_backend_name()} database.", "Give a directory or a Postgres URL.")
    try:
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except (ImportError, NoSuchModuleError):
        raise PunaError("Postgres needs psycopg.", "pip install 'puna[postgres]'") from None
