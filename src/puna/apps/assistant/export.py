"""Exports: conversations as Markdown or JSON, and preferences as rows that training reads."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from puna.apps.assistant.store import Store

FORMAT = "puna.conversations.v1"


def conversation_json(store: Store, user: str, id: str) -> dict[str, Any]:
    """A conversation with all its branches. Raises MissingError."""
    return {**store.conversation(user, id), "messages": store.tree(user, id)}


def everything(store: Store, user: str, *, page: int = 100) -> dict[str, Any]:
    """All conversations, comparisons and feedback of a user. page: conversations per query."""
    found, before = [], None
    while rows := store.conversations(user, before=before, limit=page):
        found += [conversation_json(store, user, row["id"]) for row in rows]
        before = rows[-1]["updated"]
    feedback = [{"message": message["id"], **given} for message, given in store.feedback(user)]
    return {
        "format": FORMAT,
        "conversations": found,
        "feedback": feedback,
        "comparisons": list(store.comparisons(user)),
    }


def conversation_markdown(store: Store, user: str, id: str) -> str:
    """The branch that is shown, as a Markdown document. Raises MissingError."""
    conversation = store.conversation(user, id)
    day = datetime.fromtimestamp(conversation["created"], UTC).date().isoformat()
    parts = [f"# {conversation['title'] or 'Conversation'}", f"{conversation['model']}, {day}"]
    if conversation["system"]:
        parts += ["## System", conversation["system"]]
    for message in store.path(user, id):
        parts += [f"## {'You' if message['role'] == 'user' else message['model'] or 'Assistant'}", message["content"]]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def preferences(store: Store, user: str) -> Iterator[str]:
    """Lines of JSON: {prompt, chosen, rejected, source}.

    prompt: messages; chosen and rejected: answers, as text.

    source: correction (chosen is what the person wrote), thumbs (two answers to one message, one rated up and one down;
    with only one of them rated, the other side is null) or comparison.
    """
    prompts: dict[str, list[dict[str, Any]]] = {}
    rated: dict[str, dict[int, list[str]]] = {}
    for message, given in store.feedback(user):
        parent = message["parent"]
        prompt = store.dialogue(user, message["conversation"], parent) if parent else []
        prompts[parent] = prompt
        if given["correction"]:
            yield _line(prompt, given["correction"], message["content"], "correction")
        if given["rating"] is not None:
            rated.setdefault(parent, {1: [], -1: []})[given["rating"]].append(message["content"])
    for parent, answers in rated.items():
        nobody: list[str | None] = [None]
        for liked in answers[1] or nobody:
            for disliked in answers[-1] or nobody:
                yield _line(prompts[parent], liked, disliked, "thumbs")
    for row in store.comparisons(user):
        if row["better"] in ("a", "b"):
            better, worse = (row["text_a"], row["text_b"])[:: 1 if row["better"] == "a" else -1]
            yield _line(row["prompt"], better, worse, "comparison")


def _line(prompt: list[dict[str, Any]], chosen: str | None, rejected: str | None, source: str) -> str:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": source}
    return json.dumps(row, ensure_ascii=False) + "\n"
