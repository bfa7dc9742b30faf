"""The assistant's tables.

Conversations are trees of messages: an edit or a second answer is a sibling, and nothing is overwritten. Times are
seconds since 1970. The owner of a row is the user of its conversation (or its own `user` where it has none).
"""

from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import JSON, Connection, Double, ForeignKey, String, Text, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column

from puna.web.database import NewerDatabaseError, Schema

_LEGACY_VERSION = 2  # what puna_meta says in a database of the current schema; see migrations/r0002


class AssistantTable(DeclarativeBase):
    """All tables of the assistant."""

    type_annotation_map: ClassVar = {float: Double}


class Meta(AssistantTable):
    """Facts about the database: `schema_version`, which older versions of Puna check."""

    __tablename__ = "puna_meta"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Conversation(AssistantTable):
    """A tree of messages. leaf: the last message of the branch that is shown."""

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


class Message(AssistantTable):
    """A message.

    Finish_reason is null for a person's message, and for an answer that is being written.

    finish_reason: stop, length, stopped (by the person), error, or interrupted (the server shut down). tokens: one
    entry a token, [id or null, bytes in hex, logprob, [[bytes in hex, logprob], …]], the last being the alternatives.
    stage: of the model that wrote an answer, base or chat; null in answers of before this was stored.
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
    stage: Mapped[str | None] = mapped_column(String(8))
    usage: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    created: Mapped[float]


class Feedback(AssistantTable):
    """A person's opinion of an answer.

    rating: 1, -1 or null. correction: what the answer should have been.
    """

    __tablename__ = "feedback"
    message: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    rating: Mapped[int | None]
    correction: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]


class Comparison(AssistantTable):
    """One prompt with two answers.

    better: a, b, same, or null until judged. settings: how the answers were sampled.
    """

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
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created: Mapped[float]


def _legacy(connection: Connection) -> str | None:
    """The revision of a database from before version tables. Raises NewerDatabaseError."""
    if not inspect(connection).has_table(Meta.__tablename__):
        return None
    known = connection.execute(select(Meta.value).where(Meta.key == "schema_version")).scalar()
    version = int(known) if known else 0
    if version > _LEGACY_VERSION:
        raise NewerDatabaseError(str(version), str(_LEGACY_VERSION))
    return "assistant_0001"


SCHEMA = Schema("assistant", AssistantTable.metadata, Path(__file__).with_name("migrations"), _legacy)
