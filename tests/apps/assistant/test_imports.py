"""Conversations of other programs' files: what is kept of each, and that no file can do more than be refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.apps.assistant.imports import ImportedConversation, read_conversation
from puna.web.errors import ApiError


def outline(read: ImportedConversation) -> list[tuple[str | None, str, str, str]]:
    """(parent's content, role, content, reasoning) of every message, in the order in which they are stored."""
    contents = {message.id: message.content for message in read.messages}
    return [(contents.get(m.parent or ""), m.role, m.content, m.reasoning) for m in read.messages]


def node(id: str, parent: str | None, role: str, *parts: Any, kind: str = "text", **more: Any) -> dict[str, Any]:
    """A node of ChatGPT's `mapping`."""
    content = {"content_type": kind, "parts": list(parts)} | more.pop("content", {})
    message = {
        "id": id,
        "author": {"role": role},
        "create_time": 1_700_000_000.5,
        "content": content,
        "recipient": "all",
    }
    return {"id": id, "parent": parent, "children": [], "message": message | {"metadata": {}} | more}


CHATGPT = {
    "title": "Ice",
    "create_time": 1_700_000_000.5,
    "update_time": 1_700_000_100.5,
    "current_node": "answer 2",
    "default_model_slug": "gpt-4o",
    "conversation_id": "x",
    "mapping": {
        "root": {"id": "root", "parent": None, "children": ["system"], "message": None},
        "system": node("system", "root", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        "ask": node(
            "ask", "system", "user", {"content_type": "image_asset_pointer"}, "What is ice?", kind="multimodal_text"
        ),
        "thoughts": node(
            "thoughts", "ask", "assistant", kind="thoughts", content={"thoughts": [{"content": "Water."}]}
        ),
        "tool call": node("tool call", "thoughts", "assistant", "search()", recipient="web"),
        "tool": node("tool", "tool call", "tool", "results"),
        "answer": node(
            "answer", "tool", "assistant", "Frozen water \ue200cite\ue202turn0\ue201.", metadata={"model_slug": "o3"}
        ),
        "again": node("again", "ask", "assistant", "Solid water."),
        "more": node("more", "answer", "user", "Sure?"),
        "answer 2": node("answer 2", "more", "assistant", kind="code", content={"language": "python", "text": "True"}),
    },
}


def test_chatgpt() -> None:
    read = read_conversation(CHATGPT)
    assert (read.title, read.model, read.created) == ("Ice", "gpt-4o", 1_700_000_000.5)
    assert outline(read) == [
        (None, "user", "What is ice?", ""),
        ("What is ice?", "assistant", "Solid water.", ""),
        ("What is ice?", "assistant", "Frozen water .", "Water."),
        ("Frozen water .", "user", "Sure?", ""),
        ("Sure?", "assistant", "```python\nTrue\n```", ""),
    ]
    assert read.leaf == "answer 2"
    assert next(m.model for m in read.messages if m.content.startswith("Frozen")) == "o3"


THOUGHTS = '<details type="reasoning" done="true">\n<summary>Thought</summary>\n> Hm.\n> Cold.\n</details>\n'
WEBUI = {
    "id": "x",
    "user_id": "y",
    "title": "Ice",
    "created_at": 1_700_000_000,
    "updated_at": 1_700_000_100,
    "chat": {
        "title": "Ice",
        "models": ["llama3:8b"],
        "params": {"system": "Be brief."},
        "history": {
            "currentId": "c",
            "messages": {
                "a": {
                    "id": "a",
                    "parentId": None,
                    "childrenIds": ["b", "c"],
                    "role": "user",
                    "content": "What is ice?",
                },
                "b": {"id": "b", "parentId": "a", "role": "assistant", "content": "Water.", "model": "llama3:8b"},
                "c": {
                    "id": "c",
                    "parentId": "a",
                    "role": "assistant",
                    "content": THOUGHTS + "Frozen water.",
                    "model": "qwen",
                    "timestamp": 1_700_000_050_000,
                },
            },
        },
    },
}


def test_open_webui() -> None:
    read = read_conversation(WEBUI)
    assert (read.title, read.model, read.system, read.leaf) == ("Ice", "llama3:8b", "Be brief.", "c")
    assert outline(read) == [
        (None, "user", "What is ice?", ""),
        ("What is ice?", "assistant", "Water.", ""),
        ("What is ice?", "assistant", "Frozen water.", "Hm.\nCold."),
    ]
    assert read.messages[2].created == 1_700_000_050
    rows = [{"id": "1", "role": "user", "content": "a"}, {"id": "2", "role": "assistant", "content": "b"}]
    old = {"title": "Old", "chat": {"messages": rows}}
    assert outline(read_conversation(old)) == [(None, "user", "a", ""), ("a", "assistant", "b", "")]


def said(id: str, parent: str | None) -> dict[str, Any]:
    return {"id": id, "parent": parent, "role": "user", "content": "x"}


WRONG = [
    *(None, 1, "x", [], {}, {"messages": []}, {"mapping": {}}, {"chat": {}}, {"messages": [1]}),
    {"messages": [{"role": "user"}]},
    {"mapping": {"a": 1}},
    {"mapping": {"a": {"message": {"author": 1}}}},
    {"chat": {"history": {"messages": [1]}}},
    {"messages": [said("a", "a")]},
    {"messages": [said("a", "b"), said("b", "a")]},
    {"messages": [said(str(number), None) for number in range(20_001)]},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_conversation_is_refused(wrong: Any) -> None:
    with pytest.raises(ApiError, match=r"conversation"):
        read_conversation(wrong)


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(st.text(max_size=4), SIMPLE, max_size=3)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_file_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    """One value of a good file is replaced by any other."""
    found = json.loads(json.dumps(data.draw(st.sampled_from([CHATGPT, WEBUI]))))
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(found)
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(JSON)
    try:
        read = read_conversation(found)
    except ApiError:
        return
    known = {message.id for message in read.messages}
    assert read.leaf in known
    before: set[str] = set()
    for message in read.messages:
        assert message.parent is None or message.parent in before
        assert message.role in ("user", "assistant")
        assert isinstance(message.content, str)
        before.add(message.id)
