"""Conversations, feedback and comparisons: every query names the user it is for.

Another user's rows are missing (MissingError), and nothing reveals that they exist. All functions are synchronous and
short; routes call them on a thread. They return plain dictionaries, ready for JSON.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from puna.apps.assistant.imports import ImportedConversation
from puna.apps.assistant.schema import Comparison, Conversation, Feedback, Message
from puna.web.database import contains_folded
from puna.web.errors import MissingError
from puna.web.text import clean, snippet, title_of

EDITABLE = ("title", "model", "system", "settings")


class Store:
    """The conversations in a database (see puna.web.database)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        with Session(self.engine) as session, session.begin():
            # The server that was writing these has ended.
            unfinished = (Message.role == "assistant") & Message.finish_reason.is_(None)
            session.execute(update(Message).where(unfinished).values(finish_reason="interrupted"))

    # -- conversations -----------------------------------------------------------------------------------------------

    def conversations(
        self, user: str, *, query: str = "", limit: int = 100, before: float | None = None
    ) -> list[dict[str, Any]]:
        """The user's conversations, the last used first. query: text to find in titles and messages.

        before: only those last used before this time, for the next page.
        """
        wanted = select(Conversation).where(Conversation.user == user).order_by(Conversation.updated.desc())
        if before is not None:
            wanted = wanted.where(Conversation.updated < before)
        query = clean(query).strip()
        if query:
            messages = select(Message.id).where(
                Message.conversation == Conversation.id, contains_folded(Message.content, query)
            )
            wanted = wanted.where(or_(contains_folded(Conversation.title, query), messages.exists()))
        with Session(self.engine) as session:
            found = session.scalars(wanted.limit(limit)).all()
            rows = [_conversation(row) for row in found]
            if query:
                for row in rows:
                    row["snippet"] = self._snippet(session, row["id"], query)
            return rows

    def create(
        self, user: str, *, model: str, system: str = "", settings: dict[str, Any] | None = None, title: str = ""
    ) -> dict[str, Any]:
        """Create a conversation without messages."""
        now = time.time()
        row = Conversation(
            id=str(uuid.uuid4()),
            user=user,
            title=clean(title),
            model=clean(model),
            system=clean(system),
            settings=settings or {},
            leaf=None,
            created=now,
            updated=now,
        )
        with Session(self.engine) as session, session.begin():
            session.add(row)
            session.flush()
            return _conversation(row)

    def conversation(self, user: str, id: str) -> dict[str, Any]:
        """One conversation. Raises MissingError."""
        with Session(self.engine) as session:
            return _conversation(_own(session, user, id))

    def change(self, user: str, id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Set the title, model, system prompt or settings. Raises MissingError."""
        with Session(self.engine) as session, session.begin():
            row = _own(session, user, id)
            for key in EDITABLE:
                if key in changes:
                    value = changes[key]
                    setattr(row, key, clean(value) if isinstance(value, str) else value)
            session.flush()
            return _conversation(row)

    def delete(self, user: str, id: str) -> None:
        """Delete a conversation with all its messages and feedback. Raises MissingError."""
        with Session(self.engine) as session, session.begin():
            session.delete(_own(session, user, id))

    def add_imported(self, user: str, imported: ImportedConversation, *, model: str) -> dict[str, Any]:
        """Store a conversation from elsewhere. model: its model when the file names none."""
        now = time.time()
        ids = {message.id: str(uuid.uuid4()) for message in imported.messages}
        row = Conversation(
            id=str(uuid.uuid4()),
            user=user,
            title=clean(imported.title),
            model=clean(imported.model or model),
            system=clean(imported.system),
            settings=imported.settings,
            leaf=ids.get(imported.leaf or ""),
            created=imported.created or now,
            updated=imported.updated or imported.created or now,
        )
        with Session(self.engine) as session, session.begin():
            session.add(row)
            session.flush()
            for number, message in enumerate(imported.messages):
                session.add(
                    Message(
                        id=ids[message.id],
                        conversation=row.id,
                        parent=ids.get(message.parent or ""),
                        role=message.role,
                        content=clean(message.content),
                        reasoning=clean(message.reasoning),
                        model=clean(message.model) if message.model else None,
                        # Siblings are in order of time; a file without times has them in its own order.
                        created=message.created or row.created + number * 1e-3,
                        **({"finish_reason": "stop"} if message.role == "assistant" else {}) | message.more,
                    )
                )
                session.flush()
            return _conversation(row)

    # -- messages ----------------------------------------------------------------------------------------------------

    def add_message(
        self, user: str, conversation: str, *, parent: str | None, role: str, content: str = "", **details: Any
    ) -> dict[str, Any]:
        """Add a message; it becomes the end of the branch that is shown.

        Raises MissingError, also for the parent.
        """
        with Session(self.engine) as session, session.begin():
            owner = _own(session, user, conversation)
            if parent is not None:
                _own_message(session, user, parent, conversation)
            now = time.time()
            row = Message(
                id=str(uuid.uuid4()),
                conversation=conversation,
                parent=parent,
                role=role,
                content=clean(content),
                reasoning="",
                created=now,
                **details,
            )
            session.add(row)
            session.flush()
            owner.leaf, owner.updated = row.id, now
            if not owner.title and role == "user":
                owner.title = title_of(row.content)
            return {**_message(row), "title": owner.title}

    def write(self, user: str, id: str, **changes: Any) -> None:
        """Set content, reasoning, tokens, usage, finish_reason … of a message. Raises MissingError."""
        try:
            with Session(self.engine) as session, session.begin():
                row = _own_message(session, user, id)
                for key, value in changes.items():
                    setattr(row, key, clean(value) if isinstance(value, str) else value)
        except StaleDataError:  # it was deleted between the query and the write
            raise MissingError from None

    def message(self, user: str, conversation: str, id: str) -> dict[str, Any]:
        """One message of a conversation. Raises MissingError."""
        with Session(self.engine) as session:
            return _message(_own_message(session, user, id, conversation))

    def tokens(self, user: str, conversation: str, id: str) -> list[Any]:
        """The tokens of an answer (see schema.Message); empty when none were stored.

        Raises MissingError.
        """
        with Session(self.engine) as session:
            return _own_message(session, user, id, conversation).tokens or []

    def drop_message(self, user: str, conversation: str, id: str) -> None:
        """Delete a message without replies; its parent becomes the end of the branch.

        Raises MissingError.
        """
        with Session(self.engine) as session, session.begin():
            row = _own_message(session, user, id, conversation)
            owner = _own(session, user, conversation)
            owner.leaf = row.parent
            session.delete(row)

    def path(self, user: str, id: str, *, to: str | None = None) -> list[dict[str, Any]]:
        """The branch that is shown (or the one that ends with `to`), from its first message.

        Each message has `siblings`, the ids of all versions of it including itself, the oldest first, and `feedback`
        when there is any. Raises MissingError.
        """
        with Session(self.engine) as session:
            leaf = to if to is not None else _own(session, user, id).leaf
            tree = self._tree(session, user, id)
            if to is not None and to not in tree:
                raise MissingError
            opinions = {
                row.message: {"rating": row.rating, "correction": row.correction}
                for row in session.scalars(select(Feedback).join(Message).where(Message.conversation == id))
            }
        children: dict[str | None, list[str]] = {}
        for row in tree.values():
            children.setdefault(row["parent"], []).append(row["id"])
        found = []
        while leaf is not None and leaf in tree:
            row = tree[leaf]
            found.append({**row, "siblings": children[row["parent"]], "feedback": opinions.get(leaf)})
            leaf = row["parent"]
        return found[::-1]

    def dialogue(self, user: str, id: str, to: str, *, ids_of: str | None = None) -> list[dict[str, Any]]:
        """The messages up to `to`, the system prompt first, in OpenAI's form. Raises MissingError.

        ids_of: a model whose own answers are given as the token ids it generated.
        """
        system = self.conversation(user, id)["system"]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for row in self.path(user, id, to=to):
            message = {"role": row["role"], "content": row["content"]}
            if row["role"] == "assistant" and ids_of is not None and row["model"] == ids_of:
                ids = [token[0] for token in self.tokens(user, id, row["id"])]
                if ids and None not in ids:
                    message["token_ids"] = ids
            messages.append(message)
        return messages

    def tree(self, user: str, id: str) -> list[dict[str, Any]]:
        """All messages of a conversation, the oldest first. Raises MissingError."""
        with Session(self.engine) as session:
            return list(self._tree(session, user, id).values())

    def show(self, user: str, id: str, message: str) -> None:
        """Show the branch through this message, down to the newest message under it.

        Raises MissingError.
        """
        with Session(self.engine) as session, session.begin():
            owner = _own(session, user, id)
            tree = self._tree(session, user, id)
            if message not in tree:
                raise MissingError
            newest = {row["parent"]: row["id"] for row in tree.values()}  # in order of time, so the newest wins
            while message in newest:
                message = newest[message]
            owner.leaf = message

    def _tree(self, session: Session, user: str, id: str) -> dict[str, dict[str, Any]]:
        _own(session, user, id)
        rows = session.scalars(select(Message).where(Message.conversation == id).order_by(Message.created, Message.id))
        return {row.id: _message(row) for row in rows}

    def _snippet(self, session: Session, conversation: str, query: str) -> str:
        messages = session.scalars(
            select(Message.content)
            .where(Message.conversation == conversation, contains_folded(Message.content, query))
            .order_by(Message.created)
            .limit(1)
        ).first()
        return snippet(messages, query) if messages else ""

    # -- feedback ----------------------------------------------------------------------------------------------------

    def rate(self, user: str, message: str, *, rating: int | None, correction: str | None) -> None:
        """Store the user's opinion of an answer; with neither rating nor correction, delete it.

        Raises MissingError.
        """
        with Session(self.engine) as session, session.begin():
            row = _own_message(session, user, message)
            if row.role != "assistant":
                raise MissingError
            if rating is None and not correction:
                if known := session.get(Feedback, message):
                    session.delete(known)
                return
            kept = clean(correction) if correction else None
            session.merge(Feedback(message=message, rating=rating, correction=kept, created=time.time()))

    def feedback(self, user: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(message, feedback) for all of the user's feedback, the oldest first."""
        wanted = (
            select(Message, Feedback)
            .join(Feedback, Feedback.message == Message.id)
            .join(Conversation, Conversation.id == Message.conversation)
            .where(Conversation.user == user)
            .order_by(Message.created)
        )
        with Session(self.engine) as session:
            return [
                (_message(message), {"rating": given.rating, "correction": given.correction})
                for message, given in session.execute(wanted)
            ]

    # -- comparisons -------------------------------------------------------------------------------------------------

    def add_comparison(
        self,
        user: str,
        *,
        prompt: Sequence[dict[str, str]],
        models: tuple[str, str],
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Create a comparison without answers. prompt: messages in OpenAI's form."""
        kept = [{key: clean(value) for key, value in message.items()} for message in prompt]
        row = Comparison(
            id=str(uuid.uuid4()),
            user=user,
            prompt=kept,
            model_a=models[0],
            model_b=models[1],
            settings=settings,
            created=time.time(),
        )
        with Session(self.engine) as session, session.begin():
            session.add(row)
            session.flush()
            return _comparison(row)

    def comparison(self, user: str, id: str) -> dict[str, Any]:
        """One comparison. Raises MissingError."""
        with Session(self.engine) as session:
            return _comparison(_own_comparison(session, user, id))

    def write_comparison(self, user: str, id: str, **changes: Any) -> None:
        """Set a comparison's texts, weight versions or verdict. Raises MissingError."""
        with Session(self.engine) as session, session.begin():
            row = _own_comparison(session, user, id)
            for key, value in changes.items():
                setattr(row, key, clean(value) if isinstance(value, str) else value)

    def comparisons(self, user: str) -> Iterator[dict[str, Any]]:
        """The user's comparisons, the oldest first."""
        with Session(self.engine) as session:
            wanted = select(Comparison).where(Comparison.user == user).order_by(Comparison.created)
            yield from (_comparison(row) for row in session.scalars(wanted))


def _own(session: Session, user: str, id: str) -> Conversation:
    row = session.get(Conversation, id)
    if row is None or row.user != user:
        raise MissingError
    return row


def _own_message(session: Session, user: str, id: str, conversation: str | None = None) -> Message:
    row = session.get(Message, id)
    if row is None or (conversation is not None and row.conversation != conversation):
        raise MissingError
    _own(session, user, row.conversation)
    return row


def _own_comparison(session: Session, user: str, id: str) -> Comparison:
    row = session.get(Comparison, id)
    if row is None or row.user != user:
        raise MissingError
    return row


def _plain(row: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _conversation(row: Conversation) -> dict[str, Any]:
    return _plain(row, "id", "title", "model", "system", "settings", "leaf", "created", "updated")


def _message(row: Message) -> dict[str, Any]:
    names = ("id", "conversation", "parent", "role", "content", "reasoning", "model", "weight_version", "usage")
    return _plain(row, *names, "stage", "finish_reason", "created")


def _comparison(row: Comparison) -> dict[str, Any]:
    sides = [f"{name}_{side}" for name in ("model", "weight_version", "text") for side in "ab"]
    return _plain(row, "id", "prompt", *sides, "better", "settings", "created")
