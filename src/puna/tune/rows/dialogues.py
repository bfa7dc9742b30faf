"""Read files of dialogues in the common formats of chat data. No torch.

Files are JSON lines, a JSON array or parquet. The keys of a row determine its format. `messages` is OpenAI's;
`conversations` is ShareGPT's (from, value), with its names of roles; `instruction` with `output` or `response` is
Alpaca's and Dolly's, with `instances` Self-Instruct's; `prompt` with `response`, `completion` or `answer` is the plain
one. All of them become dialogues for the chat renderer. A row in any other format is reported with its line; nothing is
guessed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import DataError, nearest
from puna.data.reading.file_types import suffix
from puna.data.reading.records import read_json, read_table
from puna.text.chat import ROLES

Message = dict[str, Any]


class Row(NamedTuple):
    """A row of a file and its location, for errors: "chat.jsonl, line 3"."""

    where: str
    value: dict[str, Any]


class Dialogue(NamedTuple):
    """Messages for the chat renderer, and descriptions of the tools that they may call."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    where: str = ""


_KINDS = (".jsonl", ".ndjson", ".json", ".parquet")
_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_ANSWERS = ("response", "completion", "answer", "output")


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read all dialogues of a file.

    Raises PunaError naming file and line of the first invalid row, or when empty.
    """
    found = [dialogue for row in read_rows(path) for dialogue in dialogues_of(row)]
    if not found:
        raise DataError(f"{path} has no dialogues.", "Give a file with at least one.")
    return found


def require_file(path: Path) -> None:
    """Raise PunaError when a file of rows is missing, or of a kind that is not read."""
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist.", nearest(path.name, near) if near else "Check the path.")
    if suffix(path.name)[0] not in _KINDS:
        raise DataError(f"{path} is not a file of dialogues.", f"Use a file that ends in {', '.join(_KINDS)}.")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file as JSON objects.

    Raises PunaError for a missing, damaged or unknown file, naming the line.
    """
    require_file(path)
    if suffix(path.name)[0] == ".parquet":
        for _, where, value in read_table(path):
            yield Row(where, value)
        return
    for _, where, value in read_json(path, strict=True):
        if not isinstance(value, dict):
            raise DataError(f"{where}: this is not a JSON object.", "Each row must be one.")
        yield Row(where, value)


def dialogues_of(row: Row) -> list[Dialogue]:
    """Return the dialogues of a row: one, or one per instance. Raises PunaError naming the row."""
    where, value = row.where, {key: item for key, item in row.value.items() if item is not None}
    tools = tools_of(value.get("tools"), where)
    system = value.get("system") or value.get("system_prompt")
    if "messages" in value:
        dialogues = [_messages(value["messages"], where)]
    elif "conversations" in value:
        dialogues = [_sharegpt(value["conversations"], where)]
    elif "instances" in value:
        asked = _text(value.get("instruction"), "instruction", where)
        pairs = value["instances"] if isinstance(value["instances"], list) else []
        dialogues = [_pair(_joined(asked, entry.get("input"), where), entry.get("output"), where) for entry in pairs]
    elif "instruction" in value:
        more = value.get("input") or value.get("context")
        asked = _joined(_text(value["instruction"], "instruction", where), more, where)
        dialogues = [[*_history(value.get("history"), where), *_pair(asked, _answer(value, where), where)]]
    elif "prompt" in value:
        # What the assistant said in a prompt was given to it: as in TRL, the completion alone is learned.
        given = [_unlearned(message) for message in prompt_messages(value["prompt"], where)]
        dialogues = [given + answer_messages(_answer(value, where), where)]
    else:
        raise DataError(
            f"{where}: the row has {_keys(value)}, which is not a known format of dialogues.",
            "Known are messages, conversations, instruction with output, and prompt with response.",
        )
    if isinstance(system, str) and system.strip():
        dialogues = [[{"role": "system", "content": system}, *dialogue] for dialogue in dialogues]
    for dialogue in dialogues:
        check_messages(dialogue, where)
    return [Dialogue(dialogue, tools, where) for dialogue in dialogues]


def prompt_messages(value: Any, where: str) -> list[Message]:
    """Convert a prompt, as text or as messages of either format, to messages."""
    if isinstance(value, str):
        return [{"role": "user", "content": _text(value, "prompt", where)}]
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        return _sharegpt(value, where)
    return _messages(value, where)


def _unlearned(message: Message) -> Message:
    return message | {"weight": 0} if message["role"] == "assistant" else message


def answer_messages(value: Any, where: str) -> list[Message]:
    """Convert an answer, as text or as one or more messages of either format, to messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": _text(value, "answer", where)}]
    return prompt_messages([value] if isinstance(value, dict) else value, where)


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Raise PunaError, naming the row, when an assistant could not learn from these messages."""
    roles = [ROLES.get(message["role"]) for message in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: the dialogue has no message of an assistant.", "There is nothing to learn from it.")
    for number, (before, role) in enumerate(zip([None, *roles], roles, strict=False), 1):
        if role == "ipython" and before not in ("assistant", "ipython"):
            raise DataError(
                f"{where}: message {number} has the role 'tool' but does not follow a tool call.",
                "A tool's result comes after the assistant's message that called it.",
            )


# -- shapes ------------------------------------------------------------------------------------------------------------


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: its messages are not a list of messages.", "Fix that row.")
    return [_message(entry, number, where) for number, entry in enumerate(value, 1)]


def _message(entry: Any, number: int, where: str) -> Message:
    role = entry.get("role") if isinstance(entry, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{where}: message {number} has the role {role!r}.", f"Known are {', '.join(ROLES)}.")
    keep = ("content", "reasoning_content", "tool_calls", "token_ids")
    message = {"role": role, **{key: entry[key] for key in keep if entry.get(key) is not None}}
    if not _is_learned(entry, f"{where}: message {number}"):
        message["weight"] = 0
    parts = message.get("content")
    if isinstance(parts, list):  # parts by type; in some data the key of the text is `value`
        texts = {"text": "content", "reasoning": "reasoning_content"}
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            said = part.get("text", part.get("value")) if isinstance(part, dict) else None
            if kind == "tool_call" and role == "assistant":
                call = _json(said, where) if isinstance(said, str) else said
                calls = call if isinstance(call, list) else [call]
                message["tool_calls"] = [*message.get("tool_calls", []), *calls]
            elif kind not in texts or not isinstance(said, str):
                raise DataError(f"{where}: message {number} has a part of type {kind!r}, which is not text.")
        for kind, key in texts.items():
            said = "".join(part.get("text", part.get("value")) for part in parts if part.get("type") == kind)
            message[key] = said
            if kind == "reasoning" and not said:
                del message[key]
    if role == "assistant":
        has = any(message.get(key) for key in ("tool_calls", "token_ids", "reasoning_content"))
        if not has and not str(message.get("content") or "").strip():
            raise DataError(f"{where}: message {number}, the assistant's, is empty.", "Fix or remove that row.")
    elif not isinstance(message.get("content"), str):
        raise DataError(f"{where}: message {number} has no text.", "Fix or remove that row.")
    return message


def _is_learned(entry: Mapping[str, Any], what: str) -> bool:
    """Whether a message is to be learned, as its `weight` (OpenAI) or `train` or `training` (axolotl) says."""
    known = {"weight": (0, 1), "train": (False, True), "training": (False, True)}
    given = {key: entry[key] for key in known if entry.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, int | float) or value not in known[key]:
            raise DataError(f"{what} has the {key} {value!r}.", "Known are 0 (not learned) and 1.")
    return all(given.values())


def _sharegpt(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: its conversations are not a list of turns.", "Fix that row.")
    messages = []
    for number, turn in enumerate(value, 1):
        if isinstance(turn, dict) and "role" in turn:
            messages.append(_message(turn, number, where))
            continue
        said = turn.get("from") if isinstance(turn, dict) else None
        if said not in _SHAREGPT:
            raise DataError(f"{where}: turn {number} is from {said!r}.", f"Known are {', '.join(_SHAREGPT)}.")
        role, text, more = _SHAREGPT[said], turn.get("value"), {}
        if role == "function_call":
            call = _json(text, where)
            calls = call if isinstance(call, list) else [call]
            role, text, more = "assistant", "", {"tool_calls": calls}
        marks = {key: turn.get(key) for key in ("weight", "train", "training")}
        messages.append(_message({"role": role, "content": text, **more, **marks}, number, where))
    return messages


def _pair(asked: str, answer: Any, where: str) -> list[Message]:
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": _text(answer, "answer", where)},
    ]


def _history(value: Any, where: str) -> list[Message]:
    if value in (None, []):
        return []
    if not isinstance(value, list) or any(not isinstance(turn, list) or len(turn) != 2 for turn in value):
        raise DataError(f"{where}: its history is not a list of pairs.", "Fix that row.")
    return [message for asked, answer in value for message in _pair(asked, answer, where)]


def _joined(asked: str, more: Any, where: str) -> str:
    more = _text(more, "input", where) if more else ""
    return f"{asked}\n\n{more}" if more.strip() else asked


def _answer(value: Mapping[str, Any], where: str) -> Any:
    given = next((value[key] for key in _ANSWERS if value.get(key) is not None), None)
    if given is None:
        raise DataError(f"{where}: the row has no answer.", f"It needs one of {', '.join(_ANSWERS)}.")
    return given


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: its {name} is {'empty' if isinstance(value, str) else 'not text'}.", "Fix that row.")
    return value


def tools_of(value: Any, where: str) -> list[dict[str, Any]]:
    if value in (None, "", [], "[]"):
        return []
    tools = _json(value, where) if isinstance(value, str) else value
    if not isinstance(tools, list) or any(not isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: its tools are not a list of JSON objects.", "Fix that row.")
    return tools


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise DataError(f"{where}: a call or its tools are not JSON.", "Fix that row.") from None


def _keys(value: Mapping[str, Any]) -> str:
    return ", ".join(list(value)[:6]) or "no keys"
