"""Conversations from elsewhere: Puna's own exports, ChatGPT's conversations.json, and Open WebUI's exports.

Every format becomes the same tree of messages. Neither ChatGPT's nor Open WebUI's format is documented; both were read
from files and source code in 2026-11. What a person wrote and read is kept with all its branches; system messages
become the conversation's system prompt; calls of tools, and pictures, are left out, and what hung below them moves up.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from puna.web.errors import ApiError
from puna.web.text import title_of

MAX_MESSAGES = 20_000
"""Of one conversation."""


@dataclass
class ImportedMessage:
    """A message. id and parent: of the file, and only used to find the parent."""

    id: str
    parent: str | None
    role: str
    content: str
    reasoning: str = ""
    model: str | None = None
    created: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImportedConversation:
    """A conversation with its messages, parents before children. leaf: the id of the last one that is shown."""

    title: str
    messages: list[ImportedMessage]
    leaf: str | None
    model: str | None = None
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    created: float | None = None
    updated: float | None = None


def read_conversation(found: Any) -> ImportedConversation:
    """One conversation of a file, whichever of the formats it is in. Raises ApiError 400 when it is in none."""
    try:
        if isinstance(found, dict):
            if isinstance(found.get("mapping"), dict):
                return _chatgpt(found)
            if isinstance(found.get("chat"), dict):
                return _open_webui(found)
            if isinstance(found.get("messages"), list):
                return _own(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(400, f"This conversation is not as its format says ({error!r}).", param="conversation") from None
    raise ApiError(
        400,
        "This is not a conversation of Puna, ChatGPT (conversations.json) or Open WebUI (exported chats).",
        param="conversation",
    )


# What else an answer of one's own export has, and how it is known to be right.
_KEPT: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in ("base", "chat"),
    "weight_version": lambda value: type(value) is int and 0 <= value < 2**31,
    "usage": lambda value: isinstance(value, dict) and all(type(one) in (int, float) for one in value.values()),
    "finish_reason": lambda value: value in ("stop", "length", "stopped", "error", "interrupted"),
}


def _own(found: dict[str, Any]) -> ImportedConversation:
    rows = [row for row in found["messages"] if row["role"] in ("user", "assistant")]
    messages = [
        ImportedMessage(
            str(row["id"]),
            _text_or_none(row["parent"]),
            row["role"],
            str(row["content"] or ""),
            str(row.get("reasoning") or ""),
            _text_or_none(row.get("model")),
            _seconds(row.get("created")),
            {key: row[key] for key, right in _KEPT.items() if right(row.get(key))},
        )
        for row in rows
    ]
    return _checked(
        messages,
        title=found.get("title"),
        leaf=found.get("leaf"),
        model=found.get("model"),
        system=found.get("system"),
        settings=found.get("settings"),
        created=found.get("created"),
        updated=found.get("updated"),
    )


def _chatgpt(found: dict[str, Any]) -> ImportedConversation:
    """`mapping` has every node by id: {message: {author, content, metadata, create_time} or null, parent}."""
    messages, system = [], []
    for id, node in found["mapping"].items():
        message = node.get("message") or {}
        role = (message.get("author") or {}).get("role", "")
        metadata = message.get("metadata") or {}
        text, reasoning = _chatgpt_text(message.get("content") or {})
        if role == "system" and text:
            system.append(text)
        hidden = metadata.get("is_visually_hidden_from_conversation") or message.get("recipient", "all") != "all"
        known = role in ("user", "assistant") and not hidden
        messages.append(
            ImportedMessage(
                str(id),
                _text_or_none(node.get("parent")),
                role if known else "",
                text,
                reasoning,
                _text_or_none(metadata.get("model_slug")) if role == "assistant" else None,
                _seconds(message.get("create_time")),
            )
        )
    return _checked(
        messages,
        title=found.get("title"),
        leaf=found.get("current_node"),
        model=found.get("default_model_slug"),
        system="\n\n".join(system),
        created=found.get("create_time"),
        updated=found.get("update_time"),
    )


_CITATION = re.compile("\ue200[^\ue200-\ue202]*(?:\ue202[^\ue200-\ue202]*)*\ue201")  # points at a search result


def _chatgpt_text(content: dict[str, Any]) -> tuple[str, str]:
    """(text, reasoning) of a message's content, by its type."""
    kind = content.get("content_type")
    if kind in ("text", "multimodal_text"):
        text = "\n\n".join(part for part in content.get("parts") or [] if isinstance(part, str))
        return _CITATION.sub("", text).strip(), ""
    if kind == "code":
        return f"```{content.get('language') or ''}\n{content.get('text') or ''}\n```", ""
    if kind == "thoughts":
        thoughts = [str(thought.get("content") or "") for thought in content.get("thoughts") or []]
        return "", "\n\n".join(filter(None, thoughts))
    return "", ""


# Reasoning and calls of tools are in Open WebUI's texts as HTML, the thoughts as a quotation.
_DETAILS = re.compile(r"<details type=\"[a-z_]+\"[^>]*>.*?</details>", re.DOTALL)
_THOUGHTS = re.compile(r"<details type=\"reasoning\"[^>]*>(?:\s*<summary>[^<]*</summary>)?(.*?)</details>", re.DOTALL)
_QUOTED = re.compile(r"^> ?", re.MULTILINE)


def _open_webui(found: dict[str, Any]) -> ImportedConversation:
    """`chat.history.messages` has every message by id, with parentId; older files have a list in `chat.messages`."""
    chat = found["chat"]
    history = chat.get("history") or {}
    rows = list((history.get("messages") or {}).values())
    if not rows:
        rows, before = [], None
        for row in chat.get("messages") or []:
            rows.append({**row, "parentId": row.get("parentId", before)})
            before = row["id"]
    messages = []
    for row in rows:
        content = _joined(row.get("content"))
        thoughts = [_QUOTED.sub("", thought).strip() for thought in _THOUGHTS.findall(content)]
        messages.append(
            ImportedMessage(
                str(row["id"]),
                _text_or_none(row.get("parentId")),
                row["role"] if row.get("role") in ("user", "assistant") else "",
                _DETAILS.sub("", content).strip(),
                "\n\n".join(thoughts),
                _text_or_none(row.get("model")) if row.get("role") == "assistant" else None,
                _seconds(row.get("timestamp")),
            )
        )
    models = chat.get("models") or []
    return _checked(
        messages,
        title=found.get("title") or chat.get("title"),
        leaf=history.get("currentId") or (messages[-1].id if messages else None),
        model=models[0] if models else None,
        system=chat.get("system") or (chat.get("params") or {}).get("system"),
        created=found.get("created_at"),
        updated=found.get("updated_at"),
    )


def _joined(content: Any) -> str:
    """A text, or the texts of OpenAI's list of parts."""
    if isinstance(content, list):
        return "\n\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict)).strip()
    return str(content or "")


def _checked(messages: list[ImportedMessage], *, title: Any, leaf: Any, **more: Any) -> ImportedConversation:
    """The conversation of these messages, without those that say nothing."""
    if len(messages) > MAX_MESSAGES:
        raise ApiError(400, f"This conversation has more than {MAX_MESSAGES:,} messages.", param="conversation")
    by_id = {message.id: message for message in messages}
    kept = {id: message for id, message in by_id.items() if message.role and (message.content or message.reasoning)}
    for message in kept.values():
        message.parent = _nearest(message.parent, by_id, kept)
    ordered = _alternating(list(_parents_first(kept)))
    if not ordered:
        raise ApiError(400, "This conversation has no messages.", param="conversation")
    first = next((message.content for message in ordered if message.role == "user"), ordered[0].content)
    return ImportedConversation(
        title=str(title or "") or title_of(first),
        messages=ordered,
        leaf=_shown(_nearest(_text_or_none(leaf), by_id, kept), ordered),
        model=_text_or_none(more.get("model")),
        system=str(more.get("system") or ""),
        settings=more["settings"] if isinstance(more.get("settings"), dict) else {},
        created=_seconds(more.get("created")),
        updated=_seconds(more.get("updated")),
    )


def _nearest(id: str | None, nodes: dict[str, ImportedMessage], kept: dict[str, ImportedMessage]) -> str | None:
    """The message itself, or the nearest one above it that is kept."""
    for _ in range(len(nodes)):
        if id is None or id in kept:
            return id
        id = nodes[id].parent if id in nodes else None
    return None


def _parents_first(kept: dict[str, ImportedMessage]) -> Iterator[ImportedMessage]:
    """The messages in an order in which they can be stored. What follows only itself is left out."""
    below: dict[str | None, list[ImportedMessage]] = {}
    for message in kept.values():
        below.setdefault(message.parent, []).append(message)
    queue = below.get(None, [])
    while queue:
        yield from queue
        queue = [child for message in queue for child in below.get(message.id, [])]


def _alternating(ordered: list[ImportedMessage]) -> list[ImportedMessage]:
    """The messages with what one side said in several pieces (thoughts, text between tools) as one message."""
    by_id = {message.id: message for message in ordered}
    continued: dict[str, list[bool]] = {}
    for message in ordered:
        before = by_id.get(message.parent or "")
        if before is None:
            continue
        same = before.role == message.role
        continued.setdefault(before.id, []).append(same)
        if same:
            message.content = "\n\n".join(filter(None, (before.content, message.content)))
            message.reasoning = "\n\n".join(filter(None, (before.reasoning, message.reasoning)))
            message.model = message.model or before.model
            message.parent = before.parent
    return [message for message in ordered if not all(continued.get(message.id, [False]))]


def _shown(leaf: str | None, ordered: list[ImportedMessage]) -> str:
    return next((message.id for message in ordered if message.id == leaf), ordered[-1].id)


def _text_or_none(value: Any) -> str | None:
    return str(value) if value is not None and value != "" else None


def _seconds(value: Any) -> float | None:
    """Seconds since 1970; some files have milliseconds or nanoseconds, and some nonsense."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    while value > 1e11:
        value /= 1000
    return float(value) if value <= time.time() + 86_400 else None
