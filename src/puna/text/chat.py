"""The chat renderer: turns a dialogue into token ids and a loss mask. No other code does.

The format is Llama 3's: each message is <|start_header_id|>role<|end_header_id|>, a blank line, the text without
surrounding white space, <|eot_id|>. Reasoning, tool calls and the list of tools, which Llama 3 does not define, follow
most open models: <think>, and Hermes' <tool_call> around a JSON object. Tool results have Llama 3.1's role `ipython`,
one message for each result, in the order of the calls.

Two things are written here and must agree: `render`, which our own code uses, and `templates.CHAT_TEMPLATE`, the same
in Jinja, which goes out with every model. They give the same ids for every dialogue whose texts contain no special
token's name. Where a text does contain one, only `render` is safe: it encodes text as text, whereas a template makes
one long string in which nobody can tell the user's "<|eot_id|>" from ours.

The ids of a dialogue with `add_generation_prompt` are a prefix of the ids of the dialogue with the answer, earlier
reasoning included: a cache of the first serves the second.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from puna.core.errors import PunaError
from puna.text.bytelevel import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    END_THINK,
    END_TOOL_CALL,
    START_HEADER,
    THINK,
    TOOL_CALL,
)
from puna.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

# The name of each role in the header. "developer" is OpenAI's newer name of the system role.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "ipython",
    "ipython": "ipython",
}
_TOOLS_BEFORE = "You can call these functions, each described by a JSON object:\n"
_TOOLS_AFTER = "\n\nCall a function like this, once for each call:\n"
_CALL_EXAMPLE = '\n{"name": "the function", "arguments": {"parameter": "value"}}\n'


class Rendered(NamedTuple):
    """A dialogue as tokens. ids: (tokens,). loss_mask: (tokens,), 1 where the token is to be learnt, else 0."""

    ids: list[int]
    loss_mask: list[int]


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> Rendered:
    """The ids of a dialogue, and which of them are the assistant's.

    messages: OpenAI's form. `role` is system, developer (the same), user, assistant or tool; `content` is a text or a
    list of {"type": "text", "text": ...}. An assistant's message may have `reasoning_content`, `tool_calls` (with or
    without OpenAI's "function" around name and arguments; arguments an object or its JSON), and `token_ids`: ids that a
    model generated. These replace everything else in the message and are never encoded again. `weight` 0 says that the
    message is not to be learned, as in OpenAI's fine-tuning data.
    tools: JSON objects that describe functions; they are listed at the end of the first system message.
    add_generation_prompt: end with the header of the assistant message to generate.

    The mask is 1 after an assistant's header, including the end token, unless the message's weight is 0; an end token
    that was added to `token_ids` (a generation that hit its limit) has 0, because the model did not generate it. Raises
    PunaError, naming the message, for an invalid message, and for a tokenizer without chat tokens.
    """
    if not messages:
        raise PunaError("The dialogue has no messages.", "Give at least one.")
    out = _Writer(tokenizer)
    out.mark(BEGIN_OF_TEXT)
    if tools and _role(messages[0], 0) != "system":
        _header(out, "system")
        _list_tools(out, tools)
        out.mark(END_OF_TURN)
    for number, message in enumerate(messages):
        role = _role(message, number)
        _header(out, role)
        if role == "assistant":
            out.learn = 0 if message.get("weight") == 0 else 1
            if message.get("token_ids") is not None:
                _generated(out, message["token_ids"], number)
            else:
                _assistant(out, message, number)
                out.mark(END_OF_TURN)
            out.learn = 0
            continue
        body = _content(message, number)
        out.text(body)
        if tools and role == "system" and number == 0:
            out.text("\n\n" if body else "")
            _list_tools(out, tools)
        out.mark(END_OF_TURN)
    if add_generation_prompt:
        _header(out, "assistant")
    return out.done()


class _Writer:
    """Collects ids and mask. Adjacent texts are encoded together, as a template's string would be."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [n for n in (BEGIN_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN) if n not in tokenizer.special]
        if missing:
            raise PunaError(
                f"This tokenizer has no chat tokens ({', '.join(missing)} missing).",
                "Use one with Llama 3's special tokens, such as one made by `puna tokenizer train`.",
            )
        self.tokenizer = tokenizer
        self.learn = 0
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._waiting = ""

    def text(self, text: str) -> None:
        """Add text; names of special tokens in it stay text."""
        self._waiting += text

    def mark(self, name: str) -> None:
        """Add a special token, or its name as text if the tokenizer lacks it (Llama 3 has no <think>)."""
        if name in self.tokenizer.special:
            self.ids([self.tokenizer.special[name]])
        else:
            self.text(name)

    def ids(self, ids: Sequence[int]) -> None:
        """Add ids unchanged."""
        self.flush()
        self._put(ids)

    def flush(self) -> None:
        """Encode the pending text, so that nothing after it can merge with it."""
        if self._waiting:
            waiting, self._waiting = self._waiting, ""
            self._put(self.tokenizer.encode(waiting))

    def done(self) -> Rendered:
        self.flush()
        return Rendered(self._ids, self._mask)

    def _put(self, ids: Sequence[int]) -> None:
        self._ids += ids
        self._mask += [self.learn] * len(ids)


def _header(out: _Writer, role: str) -> None:
    out.mark(START_HEADER)
    out.text(role)
    out.mark(END_HEADER)
    out.text("\n\n")
    # Text begins without white space, so the split pattern never joins it with these newlines.
    out.flush()


def _assistant(out: _Writer, message: Message, number: int) -> None:
    calls = message.get("tool_calls") or []
    reasoning = message.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise _wrong(number, "its reasoning_content must be a text")
    if reasoning.strip():
        out.mark(THINK)
        out.text(f"\n{reasoning.strip()}\n")
        out.mark(END_THINK)
        out.text("\n\n")
    body = _content(message, number, optional=bool(calls or reasoning))
    out.text(body)
    for index, entry in enumerate(calls):
        if body or index:
            out.text("\n")
        out.mark(TOOL_CALL)
        out.text(f"\n{_call(entry, number)}\n")
        out.mark(END_TOOL_CALL)


def _generated(out: _Writer, ids: Sequence[int], number: int) -> None:
    special = out.tokenizer.special
    if any(not isinstance(i, int) or not 0 <= i < out.tokenizer.vocab_size for i in ids):
        raise _wrong(number, f"token_ids must be between 0 and {out.tokenizer.vocab_size - 1}")
    out.ids(ids)
    if not ids or ids[-1] not in {*out.tokenizer.eos_ids, special.get(END_OF_MESSAGE)}:
        out.learn = 0
        out.mark(END_OF_TURN)


def _list_tools(out: _Writer, tools: Sequence[Mapping[str, Any]]) -> None:
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise PunaError(f"A tool is {tool!r}.", "Describe it with a JSON object.")
    out.text(_TOOLS_BEFORE + "\n".join(_json(tool) for tool in tools) + _TOOLS_AFTER)
    out.mark(TOOL_CALL)
    out.text(_CALL_EXAMPLE)
    out.mark(END_TOOL_CALL)


def _role(message: Message, number: int) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(number, f"its role is {role!r}; use one of {', '.join(list(ROLES)[:-1])}")
    return ROLES[role]


def _content(message: Message, number: int, *, optional: bool = False) -> str:
    """The text of a message without surrounding white space, as in Llama 3's reference code."""
    content = message.get("content")
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, Sequence):
        raise _wrong(number, "its content must be a text or a list of parts")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _wrong(number, 'a part of its content is not {"type": "text", "text": ...}')
        texts.append(part["text"])
    return "".join(texts).strip()


def _call(entry: Any, number: int) -> str:
    call = entry.get("function") or entry if isinstance(entry, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise _wrong(number, "a tool call has no name")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            whole = isinstance(json.loads(arguments), dict)
        except ValueError:
            whole = False
    else:
        whole = isinstance(arguments, Mapping)
    if not whole:
        raise _wrong(number, f"the arguments of its call of {call['name']} are not a JSON object")
    written = arguments if isinstance(arguments, str) else _json(arguments)
    return f'{{"name": {_json(call["name"])}, "arguments": {written}}}'


def _json(value: Any) -> str:
    """JSON as from `tojson` in chat templates: characters unescaped, keys in order."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise PunaError(
            "A tool or a tool call is not JSON: it holds a value that JSON cannot have, such as a date.",
            "Fix its description or arguments.",
        ) from None


def _wrong(number: int, what: str) -> PunaError:
    return PunaError(f"Message {number + 1} of the dialogue cannot be rendered: {what}.", "Fix that message.")
