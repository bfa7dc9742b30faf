"""The assistant's tables, and how its database is opened: SQLite in a file, or Postgres by URL.

Conversations are trees of messages: an edit or a second answer is a sibling, and nothing that was said is written over.
Times are seconds since 1970. Whose a row is stands in the conversation (or in the row itself where there is none).
"""

from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, ForeignKey, String, Text, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column

from puna.core.errors import PunaError
from puna.core.files import disk_errors

SCHEMA_VERSION = 1
BUSY_MILLISECONDS = 5000  # how long a writer waits for another one before SQLite gives up


class Base(DeclarativeBase):
    """All tables of the assistant."""


class Meta(Base):
    """What is to be known of the database itself: `schema_version`."""

    __tablename__ = "puna_meta"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Conversation(Base):
    """A tree of messages. leaf: the message at the end of the branch that is shown."""

    __tablename__ = "conversations"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user: Mapped[str] = mapped_column(Text, index=True)
    title: Mapped[str] = mapped_column(Text, default="")
    model: Mapped[str] = mapped_column(Text)
    system: Mapped[str] = mapped_column(Text, default="")
    settings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    leaf: Mapped[str | None] = mapped_column(String(36))
    created: Mapped[float]
    updated: Mapped[float] = mapped_column(index=True)


class Message(Base):
    """What was said. finish_reason is null while it is being written, and for what a person said.

    finish_reason: stop, length, stopped (by the person), error, or interrupted (the server went away). tokens: an entry
    a token, [id or null, bytes in hex, logprob, [[bytes in hex, logprob], …]], the last being the alternatives.
    """

    __tablename__ = "messages"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    conversation: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    parent: Mapped[str | None] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), index=True)
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text, default="")
    reasoning: Mapped[str] = mapped_column(Text, default="")
    tokens: Mapped[list[Any] | None] = deferred(mapped_column(JSON))
    model: Mapped[str | None] = mapped_column(Text)
    weight_version: Mapped[int | None]
    usage: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    created: Mapped[float]


class Feedback(Base):
    """What a person thought of an answer. rating: 1, -1 or null. correction: what it should have been."""

    __tablename__ = "feedback"
    message: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    rating: Mapped[int | None]
    correction: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]


class Comparison(Base):
    """One prompt, two answers side by side. better: a, b, same, or null while nobody has said."""

    __tablename__ = "comparisons"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user: Mapped[str] = mapped_column(Text, index=True)
    prompt: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    model_a: Mapped[str] = mapped_column(Text)
    model_b: Mapped[str] = mapped_column(Text)
    weight_version_a: Mapped[int | None]
    weight_version_b: Mapped[int | None]
    text_a: Mapped[str] = mapped_column(Text, default="")
    text_b: Mapped[str] = mapped_column(Text, default="")
    better: Mapped[str | None] = mapped_column(String(8))
    created: Mapped[float]


def open_database(place: str) -> Engine:
    """Open the database, making what is missing. place: a folder (SQLite lies in it) or a Postgres URL.

    Raises PunaError when it cannot be opened or was written by a newer Puna.
    """
    engine = _postgres(place) if "://" in place else _sqlite(Path(place))
    shown = engine.url.render_as_string(hide_password=True)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # of two servers that begin at once one makes the tables
            if inspect(connection).has_table(Meta.__tablename__):
                with Session(connection) as session:
                    known = session.get(Meta, "schema_version")
                    version = int(known.value) if known else 0
                if version > SCHEMA_VERSION:
                    raise PunaError(
                        f"The conversations in {shown} were written by a newer Puna (schema {version}; this one knows "
                        f"{SCHEMA_VERSION}).",
                        "Upgrade Puna, or choose another place with --data.",
                    )
            Base.metadata.create_all(connection)
            with Session(connection) as session:
                session.merge(Meta(key="schema_version", value=str(SCHEMA_VERSION)))
                session.flush()
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "it does not answer"
        raise PunaError(f"The database {shown} cannot be opened ({reason}).", "Check --data.") from None
    return engine


def _sqlite(folder: Path) -> Engine:
    """An SQLite file in a folder that only its owner may enter."""
    with disk_errors(folder / "assistant.db"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(f"sqlite:///{folder / 'assistant.db'}")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
        # SQLite's own lower knows ASCII only; a search should find É under é.
        connection.create_function("lower", 1, lambda text: text.lower() if isinstance(text, str) else text)

    return engine


def _postgres(url: str) -> Engine:
    """A Postgres database by its URL, postgres:// or postgresql://."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise PunaError("--data is no folder and no database URL.", "Give postgresql://user@host/name.") from None
    if parsed.get_backend_name() not in ("postgres", "postgresql"):
        raise PunaError(f"--data names a {parsed.get_backend_name()} database.", "Give a folder or a Postgres URL.")
    try:
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except (ImportError, NoSuchModuleError):
        raise PunaError("Postgres needs psycopg.", "pip install 'puna[postgres]'") from None
